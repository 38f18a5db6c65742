# SPDX-License-Identifier: Apache-2.0
"""iDARTS: stochastic implicit gradients (Zhang, Su, Pan, Chang, Abbasnejad and Haffari, ICML 2021,
arXiv 2106.10784).

Read: the abstract and the code that the authors released; the equations follow the code. Two things
there are not done here unless asked for: it leaves the weights moved a little along the validation
gradient (``reference_noise``), and in its NAS-Bench-201 notebook the inner steps move a copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from darts_fast.search.loop import Loop
from darts_fast.search.methods.base import Method
from darts_fast.search.methods.implicit import CHOICES, ImplicitConfig
from darts_fast.search.methods.implicit_step import implicit_step

__all__ = ["IDarts", "IDartsOptions"]


@dataclass(frozen=True)
class IDartsOptions:
    """Args: inner_steps, T; the others as of `ImplicitConfig`.

    Raises ValueError for a value out of its range.
    """

    inner_steps: int = field(
        default=4, metadata={"help": "Weight steps from one architecture step to the next."}
    )
    terms: int = field(
        default=2, metadata={"help": "Products with the Hessian in the implicit gradient."}
    )
    solver: str = field(
        default="neumann",
        metadata={"help": "Of the inverse Hessian.", "choices": CHOICES["solver"]},
    )
    damping: float = field(default=0.0, metadata={"help": "Added to the Hessian's diagonal."})
    products: str = field(
        default="exact",
        metadata={"help": "Hessian-vector products.", "choices": CHOICES["products"]},
    )
    mixed: str = field(
        default="difference",
        metadata={"help": "Mixed second derivative.", "choices": CHOICES["mixed"]},
    )
    radius: float = field(default=0.01, metadata={"help": "Of central differences in the weights."})
    diverging: str = field(
        default="keep",
        metadata={"help": "What becomes of a series that grows.", "choices": CHOICES["diverging"]},
    )
    reference_noise: bool = field(
        default=False, metadata={"help": "Leave the weights moved as the released code does."}
    )

    def __post_init__(self) -> None:
        if self.inner_steps < 1:
            raise ValueError(f"idarts: inner_steps must be at least 1, got {self.inner_steps}")
        self.implicit(0.0)
        if self.reference_noise and (self.solver, self.mixed) != ("neumann", "difference"):
            raise ValueError(
                "idarts: reference_noise needs solver neumann and mixed difference, "
                f"got {self.solver} and {self.mixed}"
            )

    def implicit(self, weight_decay: float) -> ImplicitConfig:
        """Of an inner loss with weight decay."""
        return ImplicitConfig(
            terms=self.terms,
            solver=self.solver,
            damping=self.damping + weight_decay,
            products=self.products,
            mixed=self.mixed,
            radius=self.radius,
            diverging=self.diverging,
        )


class IDarts(Method):
    """One architecture step by the implicit hypergradient before every T-th weight step.

    One fresh training batch serves the Hessian and the mixed term, and eta is the learning rate of
    the weights. Their weight decay is a part of the Hessian. An epoch is one of weight steps, so it
    has a T-th of DARTS's architecture steps. The Hessian of a network in training is seldom
    positive: the log says how many series of an epoch grew.
    """

    name = "idarts"
    Options = IDartsOptions

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._since = 0  # weight steps since the last architecture step
        self._steps = self._grown = 0  # of this epoch: architecture steps, and series that grew
        self._noise: list[Tensor] = []

    def gradient(self, loop: Loop) -> tuple[float, list[Tensor]] | None:
        self._since += 1  # with the weight step that follows
        if self._since < self.options.inner_steps:
            return None
        self._since = 0
        found = implicit_step(loop, self.options.implicit(self.config.weight_decay))
        self._steps += 1
        self._grown += found.diverged
        self._noise = found.noise if self.options.reference_noise else []
        return found.loss, found.gradients

    def update(self, loop: Loop, gradients: list[Tensor]) -> None:
        super().update(loop, gradients)
        with torch.no_grad():
            for weight, noise in zip(loop.weights, self._noise, strict=False):
                weight.add_(noise)

    def end_epoch(self, loop: Loop) -> None:
        if self._grown:
            loop.log(f"idarts: {self._grown} of {self._steps} series grew")
        self._steps = self._grown = 0

    def state_dict(self) -> dict[str, Any]:
        return {"since": self._since, "steps": self._steps, "grown": self._grown}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._since, self._steps, self._grown = state["since"], state["steps"], state["grown"]
