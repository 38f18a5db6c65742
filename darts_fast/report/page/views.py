# SPDX-License-Identifier: Apache-2.0
"""What the page says of each run, ready for its template."""

from __future__ import annotations

from dataclasses import astuple, dataclass, field
from typing import Any

from darts_fast.report.decisions import decision_rows
from darts_fast.report.figures import (
    alpha_curves,
    learning_curves,
    removal_heat_map,
    score_meaning,
)
from darts_fast.report.page import missing
from darts_fast.report.page.gallery import Gallery, Picture
from darts_fast.report.run import Run, cell_name
from darts_fast.search import genotype_text
from darts_fast.spaces import skip_connections

_RACED = " In a race, a candidate that left it was scored on fewer images than the one kept."

__all__ = ["RunView", "Topic", "number", "view_run"]


@dataclass
class Topic:
    """Pictures of one subject, and sentences on what is missing."""

    pictures: list[Picture] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    genotype: str = ""
    derived: list[tuple[str, ...]] = field(default_factory=list)


@dataclass(frozen=True)
class RunView:
    """One run on the page."""

    name: str
    found: Topic
    trained: Topic
    weights: Topic
    scores: Topic
    decisions: list[tuple[Any, ...]]
    commands: list[str]
    no_command: list[str]


def number(value: float | None, digits: int = 2) -> str:
    """A number for a table, a dash for none."""
    return "\u2013" if value is None else f"{value:,.{digits}f}"


def view_run(run: Run, gallery: Gallery) -> RunView:
    """Everything of one run; its pictures are drawn and written."""
    return RunView(
        name=run.name,
        found=_found(run, gallery),
        trained=_trained(run, gallery),
        weights=_weights(run, gallery),
        scores=_scores(run, gallery),
        decisions=[astuple(row) for row in decision_rows(run)],
        commands=run.commands,
        no_command=missing.no_command(run),
    )


def _found(run: Run, gallery: Gallery) -> Topic:
    topic = Topic(missing=missing.no_result(run))
    genotype = run.genotype
    if genotype is not None:
        topic.genotype = genotype_text(genotype)
        caption = "The cells."
        if not isinstance(genotype, str):
            caption = (
                "The cells. c with an index are the outputs of cells, /2 halves the resolution; "
                "node n is state n + 2 where this page names edges."
            )
        name = f"{run.name}-cells"
        title = f"Cells of {run.name}: {topic.genotype}"
        topic.pictures += gallery.add_cells(genotype, name, title, caption)
    for row in run.derived:
        skips = skip_connections(run.genotypes[row["selection"]])
        topic.derived.append(
            (
                row["selection"],
                number(row["test_accuracy"]),
                number(row["best_test_accuracy"]),
                number(row["parameters"], 0),
                str(skips),
                number(row["seconds"], 0),
            )
        )
    return topic


def _trained(run: Run, gallery: Gallery) -> Topic:
    series = {phase.removeprefix("train "): run.epochs(phase) for phase in run.trained_phases}
    figure = learning_curves(series, x="epoch of training", held_out="test images")
    return Topic(
        gallery.add(
            figure,
            f"{run.name}-networks",
            f"Accuracy and loss of the networks trained by {run.name}",
            "Networks trained from scratch, accuracy and loss by epoch.",
        ),
        missing.no_networks(run),
    )


def _weights(run: Run, gallery: Gallery) -> Topic:
    topic = Topic(missing=missing.no_weights(run))
    for cell_type in run.space.cell_types if run.space else ():
        which = cell_name(cell_type)
        topic.pictures += gallery.add(
            alpha_curves(run, cell_type),
            f"{run.name}-weights-{cell_type}",
            f"Architecture weights of the {which} of {run.name} by epoch",
            f"Weights of the operations of the {which}: one panel per edge, from state \u2192 "
            "to state, and a row for each node.",
        )
    return topic


def _scores(run: Run, gallery: Gallery) -> Topic:
    topic = Topic(missing=missing.no_scores(run))
    for cell_type in run.space.cell_types if run.space else ():
        what, unit = score_meaning(run, cell_type)
        raced = any(outcome != "full" for one in run.decisions for outcome in one.outcomes)
        which = cell_name(cell_type)
        topic.pictures += gallery.add(
            removal_heat_map(run, cell_type),
            f"{run.name}-scores-{cell_type}",
            f"Scores of the {which} of {run.name}: {what}",
            f"{what.capitalize()} ({unit}) when its edge was decided, with the standard error over "
            "batches where there is one. Stronger colour: worth more. Framed: kept."
            + (_RACED if raced else ""),
        )
    return topic
