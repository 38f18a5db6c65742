# SPDX-License-Identifier: Apache-2.0
"""The implicit hypergradient of a search, for iDARTS and for BaLeNAS's samples."""

from __future__ import annotations

from torch import Tensor

from darts_fast.backend import use_backend
from darts_fast.search.loop import Loop
from darts_fast.search.methods.implicit import Hypergradient, ImplicitConfig, implicit_gradient
from darts_fast.search.methods.products import drawing
from darts_fast.seeding import draw_seed

__all__ = ["implicit_step"]


def implicit_step(loop: Loop, config: ImplicitConfig) -> Hypergradient:
    """The implicit hypergradient at the network as it stands, on the validation batch of this step
    and one fresh training batch."""
    train, seed = loop.draw_train(), draw_seed()

    def twice_differentiable() -> Tensor:
        """Of plain modules, whose second derivatives take a third of the time of native calls'."""
        with use_backend("reference"):
            return loop.loss(train)

    return implicit_gradient(
        drawing(seed, lambda leaves: loop.gradients(train, leaves)),
        lambda leaves: loop.gradients(loop.valid, leaves),
        loop.weights,
        loop.net.arch_parameters(),
        rate=loop.learning_rate,
        config=config,
        loss=drawing(seed, twice_differentiable),
        join=loop.join,
    )
