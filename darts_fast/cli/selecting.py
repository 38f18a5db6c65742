# SPDX-License-Identifier: Apache-2.0
"""The flags of the selection methods, and the configuration they make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from darts_fast.cli.options import Decorator
from darts_fast.selection import (
    CRITERIA,
    MODES,
    NODE_RULES,
    SCHEDULES,
    SELECTIONS,
    VARIANTS,
    DiscretizationConfig,
    PerturbationConfig,
    RaceConfig,
    SelectionConfig,
    StrengthConfig,
)
from darts_fast.selection.bounds import BOUNDS
from darts_fast.spaces import Space

__all__ = ["method_options", "race_config", "race_options", "selection_config", "selection_options"]

CRITERION = click.Choice(CRITERIA)

race_options: tuple[Decorator, ...] = (
    click.option(
        "--race",
        is_flag=True,
        help="Let a decision stop as soon as it is sure; perturbation (paired) and one_shot.",
    ),
    click.option(
        "--race_error",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        default=0.05,
        help="Probability that a decision is wrong by more than the margin.",
    ),
    click.option(
        "--race_margin",
        type=click.FloatRange(min=0),
        help="Indifference, nats or percentage points.  [default: 0.01 nats or 0.5 points]",
    ),
    click.option("--race_bound", type=click.Choice(list(BOUNDS)), default="mixture"),
    click.option("--race_min_batches", type=click.IntRange(min=2), default=4),
    click.option(
        "--race_max_batches", type=click.IntRange(min=2), help="[default: all of --proj_images]"
    ),
    click.option(
        "--race_ordered",
        is_flag=True,
        help="Give more of the error rate to the candidates that look best to first order.",
    ),
)

method_options: tuple[Decorator, ...] = (
    click.option(
        "--select_mode",
        type=click.Choice(MODES),
        default="paired",
        help="paired: all candidates on the same images; compat: as published, quirks included.",
    ),
    click.option(
        "--proj_intv",
        type=click.IntRange(min=0),
        default=5,
        help="Tuning epochs between projections, or of each discretization; 0: no tuning.",
    ),
    click.option("--proj_crit", type=CRITERION, default="acc", help="What a removal is judged by."),
    click.option(
        "--proj_crit_normal", type=CRITERION, help="For normal cells.  [default: --proj_crit]"
    ),
    click.option(
        "--proj_crit_reduce", type=CRITERION, help="For reduction cells.  [default: --proj_crit]"
    ),
    click.option(
        "--proj_images",
        type=click.IntRange(min=1),
        help="Select on the first N validation images only.  [default: all]",
    ),
    *race_options,
    click.option("--strength_variant", type=click.Choice(VARIANTS), default="taylor"),
    click.option(
        "--strength_schedule",
        type=click.Choice(SCHEDULES),
        default="one_shot",
        help="progressive: edge by edge with --proj_intv tuning epochs.",
    ),
    click.option(
        "--strength_nodes",
        type=click.Choice(NODE_RULES),
        default="max",
        help="What of its operations an edge is worth to its node.",
    ),
)

selection_options: tuple[Decorator, ...] = (
    click.option("--select", type=click.Choice(list(SELECTIONS)), default="perturbation"),
    *method_options,
)


def race_config(settings: Mapping[str, Any]) -> RaceConfig | None:
    """The race asked for, None without ``--race``.

    Raises:
        ValueError: a value out of its range.
    """
    if not settings["race"]:
        return None
    return RaceConfig(
        error=settings["race_error"],
        margin=settings["race_margin"],
        bound=settings["race_bound"],
        min_batches=settings["race_min_batches"],
        max_batches=settings["race_max_batches"],
        ordered=settings["race_ordered"],
    )


def selection_config(settings: Mapping[str, Any], space: Space) -> SelectionConfig | None:
    """The configuration of the method in ``settings["select"]``; None for magnitude.

    Raises:
        ValueError: a value out of its range, or a race where nothing can be raced.
    """
    method, seed = settings["select"], settings["seed"]
    kind, race = SELECTIONS[method], race_config(settings)
    if race is not None and kind is not PerturbationConfig:
        raise ValueError(f"--race: needs --select perturbation or one_shot, got {method}")
    if kind is PerturbationConfig:
        return PerturbationConfig(
            mode=settings["select_mode"],
            proj_intv=settings["proj_intv"],
            proj_crit={
                name: settings.get(f"proj_crit_{name}") or settings["proj_crit"]
                for name in space.cell_types
            },
            seed=seed,
            race=race,
        )
    if kind is StrengthConfig:
        return StrengthConfig(
            variant=settings["strength_variant"],
            schedule=settings["strength_schedule"],
            node_rule=settings["strength_nodes"],
            proj_intv=settings["proj_intv"],
            seed=seed,
        )
    if kind is DiscretizationConfig:
        return DiscretizationConfig(
            criterion=settings["proj_crit"], proj_intv=settings["proj_intv"], seed=seed
        )
    return None
