# SPDX-License-Identifier: Apache-2.0
"""`accelerate` on a supernet as darts-pt writes it, C = 16, 8 cells, space s5, 32x32.

The training step, and the perturbation loop of darts-pt: one forward per removed operation of an
edge, in train mode, with the mask as weights_dict. Eager is the original left as it is; beside the
loop over the accelerated model stands the engine on `as_supernet` of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from originals import darts_pt
from rivals import RIVALS, layout
from supernets import CHANNELS, CLASSES, LAYERS, SIZE
from torch import Tensor, nn

import darts_fast
from darts_fast.selection import removal_scores

EDGE = 7


class OriginalCase:
    """One network of darts-pt in the layout of its rival, accelerated if that is "fused"."""

    def __init__(self, rival: str, batch: int) -> None:
        torch.manual_seed(0)
        self.net = darts_pt.Network(CHANNELS, CLASSES, LAYERS["s5"])
        self.images = torch.randn(batch, 3, SIZE, SIZE)
        self.labels = torch.arange(batch) % CLASSES
        # The format of eager's rows; the original's users keep NCHW, and so does "fused".
        if rival == "eager-channels_last":
            self.net.to(memory_format=layout(rival))
            self.images = self.images.to(memory_format=layout(rival))
        if rival == "fused":
            darts_fast.accelerate(self.net)
            self.supernet = darts_fast.as_supernet(self.net)
        self.leaves = [*self.net.parameters(), *self.net.arch_parameters()]

    def step(self) -> list[Tensor]:
        """The gradients of all weights and alphas."""
        loss = self.net._loss(self.images, self.labels)
        return list(torch.autograd.grad(loss, self.leaves))

    def scored(self) -> Tensor:
        """The same losses as those of `losses`, by the engine."""
        batch = (self.images, self.labels)
        found = removal_scores(self.supernet, [batch], cell_type="normal", edges=[EDGE])
        return found.loss[0]

    def losses(self) -> Tensor:
        """The loss without each operation of one normal edge, in turn."""
        found = []
        with torch.no_grad():
            for op in range(self.net.num_ops):
                tables = self.net.get_softmax()
                tables["normal"][EDGE, op] = 0.0
                logits = self.net(self.images, tables)
                found.append(nn.functional.cross_entropy(logits, self.labels))
        return torch.stack(found)


@functools.cache
def assert_equal(rival: str) -> None:
    """The rival's losses and gradients are those of the original, on a small batch."""
    eager, other = (OriginalCase(name, 4) for name in ("eager", rival))
    expected = eager.losses()
    torch.testing.assert_close(other.losses(), expected, rtol=1e-4, atol=1e-4)
    if rival == "fused":
        torch.testing.assert_close(other.scored(), expected.double(), rtol=1e-4, atol=1e-4)
    for actual, expected in zip(other.step(), eager.step(), strict=True):
        # As vectors: a ReLU that flips on the last bit changes single entries by more.
        assert (actual - expected).norm() <= 0.05 * expected.norm() + 1e-7


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("batch", [16, 64], indirect=True)
def test_training_step(measure: Callable[..., None], rival: str, batch: int) -> None:
    assert_equal(rival)
    case = OriginalCase(rival, batch)
    measure(
        case.step,
        group=f"darts-pt's own supernet, training step, batch {batch}",
        rival=rival,
        rounds=7 if rival == "fused" else 2,
        headline=batch == 64,
    )


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("batch", [64], indirect=True)
def test_removal_loop(measure: Callable[..., None], rival: str, batch: int) -> None:
    assert_equal(rival)
    case = OriginalCase(rival, batch)
    measure(
        case.losses,
        group=f"darts-pt's own supernet, loop over the removals of an edge, batch {batch}",
        rival=rival,
        rounds=3 if rival == "fused" else 1,
        headline=True,
    )


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("batch", [64], indirect=True)
def test_removal_scores(measure: Callable[..., None], rival: str, batch: int) -> None:
    assert_equal(rival)
    case = OriginalCase(rival, batch)
    measure(
        case.scored if rival == "fused" else case.losses,
        group=f"darts-pt's own supernet, removal_scores of an edge, batch {batch}",
        rival=rival,
        rounds=3 if rival == "fused" else 1,
        headline=True,
    )
