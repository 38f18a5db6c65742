# SPDX-License-Identifier: Apache-2.0
"""Settings of a supernet search; the defaults are those of the DARTS code."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from darts_fast.nn import Supernet
from darts_fast.search.methods import METHODS, method_options, option_names
from darts_fast.spaces import Space

__all__ = ["METHODS", "SAMPLINGS", "SearchConfig"]

SAMPLINGS = ("replacement", "epoch")


@dataclass(frozen=True)
class SearchConfig:
    """How a supernet is trained.

    Args:
        method: a name of `METHODS`, such as ``"darts"`` (first order) or ``"blank"`` (architecture
            weights stay as drawn).
        method_options: of the method, by name; missing ones take its defaults.
        epochs: passes of ``ceil(training images / batch_size)`` steps.
        batch_size: of weight and architecture steps.
        learning_rate, learning_rate_min: SGD, cosine from the first to the second over ``epochs``.
        momentum, weight_decay: SGD.
        grad_clip: bound of the global L2 norm of the weights' gradient.
        arch_learning_rate, arch_weight_decay: Adam on the architecture weights, betas (0.5, 0.999).
        train_portion: share of the training images for the weights; the rest is for the
            architecture and the selection.
        stratified: cut each class alike (see `darts_fast.data.split`); default in index order, as
            DARTS does.
        sampling: ``"replacement"``: every step takes the first batch of a fresh permutation, as the
            published search loops do; ``"epoch"``: every image once an epoch.
        valid_freq: epochs from one evaluation on the validation images to the next; 0 for never. It
            changes no result.
        report_freq: steps from one log line to the next.
        seed: of data order and augmentation.

    Raises:
        ValueError: a value out of its range; the message names it.
    """

    method: str = "darts"
    method_options: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 50
    batch_size: int = 64
    learning_rate: float = 0.025
    learning_rate_min: float = 0.001
    momentum: float = 0.9
    weight_decay: float = 3e-4
    grad_clip: float = 5.0
    arch_learning_rate: float = 3e-4
    arch_weight_decay: float = 1e-3
    train_portion: float = 0.5
    stratified: bool = False
    sampling: str = "replacement"
    valid_freq: int = 1
    report_freq: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in (("method", METHODS), ("sampling", SAMPLINGS)):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"SearchConfig: {name} must be one of {', '.join(choices)}, "
                    f"got {getattr(self, name)!r}"
                )
        method_options(self.method, self.method_options)
        for name, least in (
            ("epochs", 0),
            ("batch_size", 2),
            ("valid_freq", 0),
            ("report_freq", 1),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(
                    f"SearchConfig: {name} must be at least {least}, got {getattr(self, name)}"
                )
        for name in (
            "learning_rate",
            "learning_rate_min",
            "momentum",
            "weight_decay",
            "arch_learning_rate",
            "arch_weight_decay",
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"SearchConfig: {name} must be finite and >= 0, got {value}")
        if not self.grad_clip > 0:
            raise ValueError(f"SearchConfig: grad_clip must be positive, got {self.grad_clip}")
        if not 0 < self.train_portion < 1:
            raise ValueError(
                f"SearchConfig: train_portion must be between 0 and 1, got {self.train_portion}"
            )

    def build_supernet(
        self, space: str | Space, *, channels: int, num_classes: int, layers: int
    ) -> Supernet:
        """The supernet that the method trains, see `darts_fast.nn.build_supernet`."""
        return METHODS[self.method].build_supernet(
            space,
            channels=channels,
            num_classes=num_classes,
            layers=layers,
            options=method_options(self.method, self.method_options),
        )

    def learning_rate_at(self, epoch: int) -> float:
        """Of the weights in an epoch of the search: the cosine."""
        swing = (self.learning_rate - self.learning_rate_min) / 2
        return self.learning_rate_min + swing * (
            1 + math.cos(math.pi * epoch / max(self.epochs, 1))
        )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> SearchConfig:
        """The settings among ``values``, and the options of the method that are not None; other
        keys are left alone, missing ones take the defaults.
        """
        names = {setting.name for setting in fields(cls)}
        given = {name: value for name, value in values.items() if name in names}
        return cls(**given).with_settings(
            **{
                name: values[name]
                for name in option_names(given.get("method", cls.method))
                if values.get(name) is not None
            }
        )

    def with_settings(self, **settings: Any) -> SearchConfig:
        """This configuration with settings, and options of the method, replaced by name.

        Raises:
            ValueError: a value out of its range, or a name that neither has.
        """
        names = {setting.name for setting in fields(self)}
        method = settings.get("method", self.method)
        kept = self.method_options if method == self.method else {}
        options = {name: value for name, value in settings.items() if name not in names}
        given = {name: value for name, value in settings.items() if name in names}
        return replace(self, **{"method_options": {**kept, **options}, **given})
