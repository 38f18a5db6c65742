# SPDX-License-Identifier: Apache-2.0
"""The flags that limit what the derived network may cost, and that end a search early."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from darts_fast.cli.options import Decorator
from darts_fast.cost import RESOURCES, DerivedSizes, cost_table
from darts_fast.data import Dataset
from darts_fast.search import EarlyStopping, EigenvalueRule, SkipRule
from darts_fast.selection import Limit, Limits
from darts_fast.spaces import Genotype

__all__ = ["cost_options", "limit_options", "limit_rows", "limits_of", "stopping_of"]

UNITS = {"K": 1e3, "M": 1e6, "G": 1e9}
EARLY_STOP = ("none", "eigenvalue", "adaptive")


class Amount(click.ParamType):
    """A positive number, perhaps with K, M or G behind it."""

    name = "amount"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        text = str(value).strip().upper()
        factor = UNITS.get(text[-1:], 1.0)
        try:
            amount = float(text[:-1] if factor > 1 else text) * factor
        except ValueError:
            amount = 0.0
        if not 0 < amount < float("inf"):
            self.fail(f"must be a positive number such as 3500000 or 3.5M, got {value!r}")
        return amount


def _penalty(resource: str, what: str) -> Decorator:
    return click.option(
        f"--{resource}_penalty",
        type=click.FloatRange(min=0),
        help=f"Reject nothing for {what}; take this times (cost of an operation / limit) from what "
        "it is worth.",
    )


cost_options: tuple[Decorator, ...] = (
    click.option(
        "--max_macs",
        type=Amount(),
        help="Multiply-adds for an image, such as 600M, of the network of --derive_channels and "
        "--derive_layers.",
    ),
    click.option("--max_params", type=Amount(), help="Parameters of that network, such as 3.5M."),
    click.option(
        "--max_latency_ms", type=Amount(), help="Its forward pass, by times measured here."
    ),
    _penalty("macs", "--max_macs"),
    _penalty("params", "--max_params"),
    _penalty("latency", "--max_latency_ms"),
    click.option(
        "--latency_batch", type=click.IntRange(min=1), default=1, help="Images of that pass."
    ),
)

limit_options: tuple[Decorator, ...] = (
    *cost_options,
    click.option(
        "--early_stop",
        type=click.Choice(EARLY_STOP),
        default="none",
        help="Watch the largest eigenvalue of the alpha-Hessian; where it rises go back and end, "
        "or, adaptive, go on with three times the weight decay.",
    ),
    click.option(
        "--max_skips",
        type=click.IntRange(min=0),
        help="End the search before the normal cell has more skip connections than this.",
    ),
)


def limits_of(settings: Mapping[str, Any], data: Dataset) -> Limits | None:
    """The limits asked for, None without any; latencies are measured.

    Raises:
        ValueError: a penalty without its limit, or limits that no network keeps.
    """
    sizes = DerivedSizes(
        channels=settings["derive_channels"],
        layers=settings["derive_layers"],
        num_classes=data.num_classes,
        image_size=data.image_size,
        batch=settings["latency_batch"],
    )
    limits = []
    for resource in RESOURCES:
        flag = resource.removesuffix("_ms")
        most, penalty = settings[f"max_{resource}"], settings[f"{flag}_penalty"]
        if most is not None:
            limits.append(Limit(cost_table(resource, settings["space"], sizes), most, penalty))
        elif penalty is not None:
            raise ValueError(f"--{flag}_penalty: needs --max_{resource}")
    if not limits:
        return None
    if settings["select"] == "discretization":
        raise ValueError("--select discretization: takes no limits on the derived network")
    return Limits(limits)


def limit_rows(limits: Limits, found: Genotype | str) -> list[dict[str, Any]]:
    """For every limit its resource, bound and penalty, and what the found network costs."""
    return [
        {
            "resource": limit.table.resource,
            "most": limit.most,
            "penalty": limit.penalty,
            "found": limit.table.total(found),
        }
        for limit in limits.limits
    ]


def stopping_of(settings: Mapping[str, Any]) -> EarlyStopping | None:
    """The early stopping asked for, None without any."""
    how, skips = settings["early_stop"], settings["max_skips"]
    if how == "none" and skips is None:
        return None
    return EarlyStopping(
        eigenvalue=None if how == "none" else EigenvalueRule(),
        skips=None if skips is None else SkipRule(skips),
        adapt=how == "adaptive",
    )
