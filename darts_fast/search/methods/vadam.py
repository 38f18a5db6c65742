# SPDX-License-Identifier: Apache-2.0
"""Natural-gradient variational inference by the equations of Adam.

Vadam (Khan et al., ICML 2018, arXiv 1806.04854) as BaLeNAS (Zhang et al., CVPR 2022, arXiv
2111.13204) uses it on architecture parameters. Read: the copy that its author left in the code of
iDARTS; the repository of BaLeNAS itself was not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

__all__ = ["SampledGradients", "Vadam"]

SampledGradients = Callable[[list[Tensor]], tuple[Tensor, list[Tensor]]]
"""Samples ``[S, *shape]`` of every parameter -> losses ``[S]`` and gradients ``[S, *shape]``."""


class Vadam(torch.optim.Optimizer):
    """Learns a Gaussian ``N(mu, sigma^2)`` for every value of the parameters, which hold mu.

    With N the images of the data set, lambda the precision of the prior ``N(0, 1 / lambda)``, s
    the running mean square of the gradients and g the gradient of the mean loss at a sample,
    averaged over the samples as its square is::

        sigma = 1 / sqrt(N s + lambda)
        m <- beta1 m + (1 - beta1) (g + lambda / N mu)
        s <- beta2 s + (1 - beta2) g^2
        mu <- mu - lr (m / (1 - beta1^t)) / (sqrt(s / (1 - beta2^t)) + lambda / N)

    The square of the gradient stands for the Hessian, so sigma is not calibrated. The prior takes
    the place of weight decay.

    Args:
        params: parameters, moved in place.
        lr, betas: as of Adam.
        data_size: N.
        prior_precision: lambda.
        initial_precision: of the Gaussian at the start; with the default, that of the prior, sigma
            is 1 at first.
        samples: S of each step.
        generator: of the samples, default torch's global one.

    Raises:
        ValueError: a value out of its range.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        *,
        data_size: int = 25_000,
        prior_precision: float = 1.0,
        initial_precision: float = 1.0,
        samples: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        for name, count in (("data_size", data_size), ("samples", samples)):
            if count < 1:
                raise ValueError(f"Vadam: {name} must be at least 1, got {count}")
        if not (math.isfinite(lr) and lr >= 0):
            raise ValueError(f"Vadam: lr must be finite and >= 0, got {lr}")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"Vadam: betas must be at least 0 and below 1, got {betas}")
        if not 0 < prior_precision <= initial_precision < math.inf:
            raise ValueError(
                "Vadam: initial_precision must be at least prior_precision, which is positive, "
                f"got {initial_precision} and {prior_precision}"
            )
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "data_size": data_size,
                "prior_precision": prior_precision,
                "samples": samples,
            },
        )
        start = (initial_precision - prior_precision) / data_size
        for parameter in self._parameters():
            self.state[parameter] = {
                "step": 0,
                "mean": torch.zeros_like(parameter),
                "square": torch.full_like(parameter, start),
            }
        self._generator = generator

    def deviations(self) -> list[Tensor]:
        """sigma of every parameter."""
        found = []
        for group in self.param_groups:
            for parameter in group["params"]:
                square = self.state[parameter]["square"]
                precision = group["data_size"] * square + group["prior_precision"]
                found.append(1 / precision.sqrt())
        return found

    @torch.no_grad()
    def sample(self, count: int) -> list[Tensor]:
        """So many draws of every parameter, ``[count, *shape]``."""
        found = []
        for parameter, deviation in zip(self._parameters(), self.deviations(), strict=True):
            noise = torch.randn(
                (count, *parameter.shape),
                dtype=parameter.dtype,
                device=parameter.device,
                generator=self._generator,
            )
            found.append(parameter + deviation * noise)
        return found

    def divergence(self) -> float:
        """The Kullback-Leibler divergence of the Gaussian from the prior, in nats."""
        total = 0.0
        deviations = iter(self.deviations())
        for group in self.param_groups:
            for parameter in group["params"]:
                scaled = group["prior_precision"] * next(deviations).double().square()
                mean = group["prior_precision"] * parameter.detach().double().square()
                total += float((scaled + mean - 1 - scaled.log()).sum()) / 2
        return total

    def step(self, closure: SampledGradients) -> Tensor:  # type: ignore[override]
        """Draw samples, ask for the gradients there, and move.

        Args:
            closure: any hypergradient at the samples; called once.

        Returns:
            The losses of the samples. Where one is not finite, nothing has moved.
        """
        losses, gradients = closure(self.sample(self.param_groups[0]["samples"]))
        if bool(losses.isfinite().all()):
            self.move(gradients)
        return losses

    @torch.no_grad()
    def move(self, gradients: Sequence[Tensor]) -> None:
        """One update from the gradients ``[S, *shape]`` at samples."""
        given = iter(gradients)
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            pull = group["prior_precision"] / group["data_size"]
            for parameter in group["params"]:
                gradient = next(given)
                state = self.state[parameter]
                state["step"] += 1
                g, square = gradient.mean(0), gradient.square().mean(0)
                mean = beta1 * state["mean"] + (1 - beta1) * (g + pull * parameter)
                second = beta2 * state["square"] + (1 - beta2) * square
                state["mean"].copy_(mean)
                state["square"].copy_(second)
                mean = mean / (1 - beta1 ** state["step"])
                scale = (second / (1 - beta2 ** state["step"])).sqrt() + pull
                parameter.sub_(group["lr"] * mean / scale)

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]
