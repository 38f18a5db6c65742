# SPDX-License-Identifier: Apache-2.0
"""From a trained supernet to an architecture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from darts_fast.distributed import ALONE, World
from darts_fast.nn import Supernet
from darts_fast.selection.config import (
    CRITERIA,
    MODES,
    NODE_RULES,
    SCHEDULES,
    VARIANTS,
    Decision,
    DiscretizationConfig,
    PerturbationConfig,
    StrengthConfig,
    race_summary,
)
from darts_fast.selection.discretization import (
    Converge,
    DiscretizationSelection,
    discretized,
)
from darts_fast.selection.engine import BatchScores, MaskedEvaluation
from darts_fast.selection.limits import Limit, Limits, cheapest
from darts_fast.selection.magnitude import (
    MagnitudeSelection,
    limited_magnitude,
    magnitude_genotype,
    magnitude_weights,
)
from darts_fast.selection.perturbation import (
    BatchSource,
    OneShotSelection,
    PerturbationSelection,
)
from darts_fast.selection.progressive import ProgressiveSelection
from darts_fast.selection.race import RaceConfig, RaceResult, race
from darts_fast.selection.removals import Removal, every_removal
from darts_fast.selection.schedule import Schedule, projection_schedule
from darts_fast.selection.scores import RemovalScores, removal_scores
from darts_fast.selection.strength import StationaryPointWarning, Strengths, strengths
from darts_fast.selection.strength_selection import StrengthSelection
from darts_fast.selection.tables import Difference, Score, TableScores, score_tables
from darts_fast.spaces import Genotype

__all__ = [
    "CRITERIA",
    "MODES",
    "NODE_RULES",
    "SCHEDULES",
    "SELECTIONS",
    "VARIANTS",
    "BatchScores",
    "Decision",
    "Difference",
    "DiscretizationConfig",
    "DiscretizationSelection",
    "Limit",
    "Limits",
    "MagnitudeSelection",
    "MaskedEvaluation",
    "OneShotSelection",
    "PerturbationConfig",
    "PerturbationSelection",
    "ProgressiveSelection",
    "RaceConfig",
    "RaceResult",
    "Removal",
    "RemovalScores",
    "Schedule",
    "Score",
    "Selection",
    "SelectionConfig",
    "StationaryPointWarning",
    "StrengthConfig",
    "StrengthSelection",
    "Strengths",
    "TableScores",
    "build_selection",
    "cheapest",
    "discretized",
    "every_removal",
    "limited_magnitude",
    "magnitude_genotype",
    "magnitude_weights",
    "projection_schedule",
    "race",
    "race_summary",
    "removal_scores",
    "score_tables",
    "select",
    "strengths",
]

SelectionConfig = PerturbationConfig | StrengthConfig | DiscretizationConfig

# The kind of configuration of every method; magnitude has none.
SELECTIONS: dict[str, type[SelectionConfig] | None] = {
    "perturbation": PerturbationConfig,
    "magnitude": None,
    "strength": StrengthConfig,
    "discretization": DiscretizationConfig,
    "one_shot": PerturbationConfig,
}


@dataclass(frozen=True)
class Selection:
    """What was selected: the genotype (a string for NAS-Bench-201), and how."""

    method: str
    genotype: Genotype | str
    decisions: list[Decision] = field(default_factory=list)


def _config_class(method: str) -> type[SelectionConfig] | None:
    """What configures a method; ValueError for one that does not exist."""
    if method not in SELECTIONS:
        raise ValueError(f"select: method must be one of {', '.join(SELECTIONS)}, got {method!r}")
    return SELECTIONS[method]


def _check_config(method: str, config: SelectionConfig | None) -> None:
    """Raise ValueError unless the method exists and the configuration is one of its own."""
    kind = _config_class(method)
    if config is not None and (kind is None or not isinstance(config, kind)):
        wanted = "no config" if kind is None else f"a {kind.__name__}"
        raise ValueError(f"select: method {method} takes {wanted}, got {type(config).__name__}")


def build_selection(
    method: str,
    net: Supernet,
    batches: BatchSource,
    config: SelectionConfig | None = None,
    *,
    tune: Callable[[int], None] | None = None,
    converge: Converge | None = None,
    log: Callable[[str], None] | None = None,
    between: Callable[[], None] | None = None,
    checkpoint: Callable[[], None] | None = None,
    world: World = ALONE,
    limits: Limits | None = None,
) -> ProgressiveSelection:
    """The selection phase of a method other than plain magnitude, ready to run and to stop.

    Args: as for `select`; between, checkpoint: see `ProgressiveSelection`.

    Raises:
        ValueError: unknown method, a configuration of another method, or what its class raises.
    """
    _check_config(method, config)
    _check_limits(method, net, config, limits)
    common: dict[str, Any] = {"log": log, "between": between, "checkpoint": checkpoint}
    given: Any = config
    source: Any = batches
    phase: ProgressiveSelection
    if method == "perturbation":
        phase = PerturbationSelection(net, source, given, tune=tune, **common)
    elif method == "strength":
        phase = StrengthSelection(net, source, given, tune=tune, **common)
    elif method == "one_shot":
        phase = OneShotSelection(net, source, given, **common)
    elif method == "discretization":
        if converge is None:
            raise ValueError(
                "select: method discretization needs converge to train copies, got None"
            )
        phase = DiscretizationSelection(net, source, converge, given, **common)
    else:
        phase = MagnitudeSelection(net, tune=tune, **common)
    phase.world = world
    phase.limits = limits
    return phase


def _check_limits(
    method: str, net: Supernet, config: SelectionConfig | None, limits: Limits | None
) -> None:
    if limits is None:
        return
    if limits.space.name != net.space.name:
        raise ValueError(
            f"select: limits must be of space {net.space.name}, got {limits.space.name}"
        )
    if method == "discretization":
        raise ValueError("select: method discretization takes no limits, got some")
    if limits.priced and getattr(config, "race", None) is not None:
        raise ValueError("select: a penalty needs scores of all images, got a race")


def select(
    net: Supernet,
    batches: BatchSource | None = None,
    *,
    method: str = "magnitude",
    config: SelectionConfig | None = None,
    race: RaceConfig | None = None,
    tune: Callable[[int], None] | None = None,
    converge: Converge | None = None,
    log: Callable[[str], None] | None = None,
    world: World = ALONE,
    limits: Limits | None = None,
) -> Selection:
    """Select an architecture from a trained supernet.

    Args:
        net: the supernet. Every method but ``"magnitude"`` writes its projections and, through
            ``tune`` or ``converge``, its weights.
        batches: labelled images to score on, needed by all but ``"magnitude"``: a list of
            ``(images, labels)``, or in mode ``compat`` a function that gives a fresh pass.
        method: ``"magnitude"`` (DARTS), ``"perturbation"`` (DARTS-PT), ``"one_shot"`` (all removals
            scored once on the supernet as it is), ``"strength"`` (after OStr-DARTS) or
            ``"discretization"`` (accuracy of a trained copy for every candidate).
        config: of the method: `PerturbationConfig` (also for ``"one_shot"``), `StrengthConfig` or
            `DiscretizationConfig`.
        race: replaces the ``race`` of a `PerturbationConfig`.
        tune: trains the network for one epoch; called between projections with the tuning epoch's
            number. Fixed-alpha variants leave the architecture weights alone in it; perturbations
            of the architecture weights (SDARTS) happen in it.
        converge: trains the copy it is given to convergence; ``"discretization"`` needs it.
        log: takes log lines in the originals' form.
        world: processes that share the scoring (`darts_fast.distributed.join`), each with the same
            arguments, network and tuned weights; all of them select the same. Strengths and mode
            ``compat`` are computed in full by each.
        limits: on the cost of the derived network (`darts_fast.selection.limits`), for all methods
            but ``"discretization"``; penalties do not go with a race.

    Raises:
        ValueError: unknown method, no batches where they are needed, or a configuration that does
            not belong to the method.
    """
    kind = _config_class(method)
    if race is not None:
        if kind is not PerturbationConfig:
            raise ValueError(f"select: a race needs removals to compare, got method {method!r}")
        base = config or PerturbationConfig()
        assert isinstance(base, PerturbationConfig)
        config = replace(base, race=race)
    if method == "magnitude":
        _check_config(method, config)
        _check_limits(method, net, config, limits)
        if limits is not None:
            return Selection(method, limited_magnitude(net, limits))
        return Selection(method, magnitude_genotype(net))
    if batches is None:
        raise ValueError(f"select: method {method} needs batches to score on, got None")
    phase = build_selection(
        method,
        net,
        batches,
        config,
        tune=tune,
        converge=converge,
        log=log,
        world=world,
        limits=limits,
    )
    decisions = phase.run()
    return Selection(method, net.genotype(), decisions)
