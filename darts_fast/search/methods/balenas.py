# SPDX-License-Identifier: Apache-2.0
"""BaLeNAS: DARTS by the Bayesian learning rule (Zhang et al., CVPR 2022, arXiv 2111.13204).

Read: the abstract, and the copy of the update that the author left in the code of iDARTS; the
repository of BaLeNAS itself was not. See `vadam` for the equations and `training_free` for
BaLeNAS-TF.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from darts_fast.search.loop import Loop
from darts_fast.search.methods.at_samples import HYPERGRADIENTS, AtSamples
from darts_fast.search.methods.base import Method
from darts_fast.search.methods.vadam import Vadam

__all__ = ["BaLeNAS", "BaLeNASOptions"]


@dataclass(frozen=True)
class BaLeNASOptions:
    """Args: as of `Vadam`; hypergradient, what is evaluated at the samples.

    Raises ValueError for a value out of its range.
    """

    samples: int = field(default=1, metadata={"help": "Architectures drawn in a step."})
    data_size: int = field(default=25_000, metadata={"help": "Images that the prior counts for."})
    prior_precision: float = field(default=1.0, metadata={"help": "Of the Gaussian prior."})
    initial_precision: float = field(default=1.0, metadata={"help": "Of the Gaussian at first."})
    hypergradient: str = field(
        default="first",
        metadata={"help": "Order of the gradient at the samples.", "choices": HYPERGRADIENTS},
    )

    def __post_init__(self) -> None:
        if self.hypergradient not in HYPERGRADIENTS:
            raise ValueError(
                f"balenas: hypergradient must be one of {', '.join(HYPERGRADIENTS)}, "
                f"got {self.hypergradient!r}"
            )
        self.optimizer([torch.zeros(1)], 0.0)

    def optimizer(self, alphas: Sequence[Tensor], lr: float) -> Vadam:
        """Of the architecture parameters."""
        return Vadam(
            alphas,
            lr,
            data_size=self.data_size,
            prior_precision=self.prior_precision,
            initial_precision=self.initial_precision,
            samples=self.samples,
        )


class BaLeNAS(Method):
    """The architecture parameters are the means of Gaussians; gradients are taken at samples.

    The weight step sees the means. Weight decay of the architecture has no effect: the prior takes
    its place. With the default prior and a few hundred steps the Gaussians stay wide, and the
    search is nearly random: sigma starts at 1 and shrinks as ``data_size`` times the mean square
    gradient comes to the prior's precision.

    Attributes:
        posterior: the optimizer, which has the Gaussians.
        at_samples: the gradients at draws from them.
    """

    name = "balenas"
    Options = BaLeNASOptions

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        alphas = self.net.arch_parameters()
        self.posterior = self.options.optimizer(alphas, self.config.arch_learning_rate)
        self.at_samples = AtSamples(self.net, self.options.hypergradient)
        self._found: list[Tensor] = []

    def gradient(self, loop: Loop) -> tuple[float, list[Tensor]] | None:
        samples = self.posterior.sample(self.options.samples)
        loss, self._found = self.at_samples(loop, samples)
        return loss, [gradient.mean(0) for gradient in self._found]

    def update(self, loop: Loop, gradients: list[Tensor]) -> None:
        self.posterior.move(self._found)

    def end_epoch(self, loop: Loop) -> None:
        sigma = torch.cat([d.flatten() for d in self.posterior.deviations()]).mean()
        loop.log(f"balenas: mean sigma {sigma:.4f}, divergence {self.posterior.divergence():.3f}")

    def state_dict(self) -> dict[str, Any]:
        return {"posterior": self.posterior.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.posterior.load_state_dict(state["posterior"])
