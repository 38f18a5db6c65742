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
from torch.nn import functional

from darts_fast.nn import Supernet, frozen
from darts_fast.search.loop import Loop
from darts_fast.search.methods.base import Method
from darts_fast.search.methods.darts import unrolled_step
from darts_fast.search.methods.grouped import GroupedForward
from darts_fast.search.methods.idarts import implicit_step
from darts_fast.search.methods.implicit import ImplicitConfig
from darts_fast.search.methods.numeric import restored
from darts_fast.search.methods.vadam import Vadam

__all__ = ["BaLeNAS", "BaLeNASOptions"]

HYPERGRADIENTS = ("first", "second", "implicit")


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
    """

    name = "balenas"
    Options = BaLeNASOptions

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        alphas = self.net.arch_parameters()
        self.posterior = self.options.optimizer(alphas, self.config.arch_learning_rate)
        self._found: list[Tensor] = []
        self._forward = GroupedForward(self.net)

    def gradient(self, loop: Loop) -> tuple[float, list[Tensor]] | None:
        samples = self.posterior.sample(self.options.samples)
        first, several = self.options.hypergradient == "first", self.options.samples > 1
        if first and several and loop.alone and _plain(self.net):
            losses, self._found = self._grouped(loop, samples)
        else:
            losses, self._found = self._one_by_one(loop, samples)
        return losses, [gradient.mean(0) for gradient in self._found]

    def update(self, loop: Loop, gradients: list[Tensor]) -> None:
        self.posterior.move(self._found)

    def end_epoch(self, loop: Loop) -> None:
        sigma = torch.cat([d.flatten() for d in self.posterior.deviations()]).mean()
        loop.log(f"balenas: mean sigma {sigma:.4f}, divergence {self.posterior.divergence():.3f}")

    def state_dict(self) -> dict[str, Any]:
        return {"posterior": self.posterior.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.posterior.load_state_dict(state["posterior"])

    def _grouped(self, loop: Loop, samples: list[Tensor]) -> tuple[float, list[Tensor]]:
        """First-order gradients at all samples in one pass."""
        for sample in samples:
            sample.requires_grad_()
        with frozen([*loop.weights, *self.net.arch_parameters()]):
            logits = self._forward(loop.valid.images, _tables(self.net, samples))
            labels = loop.valid.labels
            losses = torch.stack([functional.cross_entropy(rows, labels) for rows in logits])
            found = [torch.zeros_like(sample) for sample in samples]
            if losses.requires_grad:  # not every edge is decided
                total = losses.sum()
                found = list(
                    torch.autograd.grad(total, samples, allow_unused=True, materialize_grads=True)
                )
        return float(losses.detach().mean()), found

    def _one_by_one(self, loop: Loop, samples: list[Tensor]) -> tuple[float, list[Tensor]]:
        """Any hypergradient, at one sample after the other."""
        alphas = self.net.arch_parameters()
        means = [alpha.detach().clone() for alpha in alphas]
        results = []
        for index in range(self.options.samples):
            with restored(alphas):
                drawn = [sample[index] for sample in samples]
                _copy(alphas, drawn)
                results.append(self._hypergradient(loop, means, drawn))
        losses, rows = zip(*results, strict=True)
        gradients = [torch.stack(parts) for parts in zip(*rows, strict=True)]
        return sum(losses) / len(losses), gradients

    def _hypergradient(
        self, loop: Loop, means: list[Tensor], drawn: list[Tensor]
    ) -> tuple[float, list[Tensor]]:
        """At the sample that the network's architecture parameters hold."""
        alphas = self.net.arch_parameters()
        if self.options.hypergradient == "first":
            return loop.gradients(loop.valid, alphas)
        if self.options.hypergradient == "implicit":
            damping = self.config.weight_decay
            found = implicit_step(loop, ImplicitConfig(damping=damping, diverging="keep"))
            return found.loss, found.gradients
        weights = loop.weights

        def train(leaves: Sequence[Tensor]) -> tuple[float, list[Tensor]]:
            """The virtual step is one at the means, whatever the sample."""
            if leaves[0] is not weights[0]:
                return loop.gradients(loop.train, leaves)
            _copy(alphas, means)
            found = loop.gradients(loop.train, leaves)
            _copy(alphas, drawn)
            return found

        return unrolled_step(loop, train)


@torch.no_grad()
def _copy(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """In place: a captured graph keeps the storage."""
    torch._foreach_copy_(list(parameters), list(values))


def _plain(net: Supernet) -> bool:
    """Whether the edge weights are the projected softmax of one table per cell type, and nothing
    else is learned beside them."""
    alone = len(net.arch_parameters()) == len(net.space.cell_types)
    return alone and type(net)._edge_weights is Supernet._edge_weights


def _tables(net: Supernet, samples: Sequence[Tensor]) -> dict[str, Tensor]:
    """Edge weights ``[S, edges, ops]`` by cell type, with what the network has decided."""
    return {
        name: torch.stack([net.projection.apply(name, row) for row in sample.softmax(-1)])
        for name, sample in zip(net.space.cell_types, samples, strict=True)
    }
