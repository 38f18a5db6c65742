# SPDX-License-Identifier: Apache-2.0
"""The decisions of a selection in words and as CSV."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from darts_fast.report.csv_text import csv_text
from darts_fast.report.figures import decided_by, edge_scores, score_meaning
from darts_fast.report.run import Run
from darts_fast.selection import Decision

__all__ = ["DecisionRow", "decision_rows", "decisions_csv"]

_SCORES = ("loss", "loss_stderr", "accuracy", "accuracy_stderr")


@dataclass(frozen=True)
class DecisionRow:
    """One line of the table; every field is ready to print.

    Attributes:
        number, epoch: of the decision from 1, and of the tuning from 0.
        place: which edge or node of which cell.
        chosen: what was kept.
        score, runner_up: of the chosen operation, and of the next best one; of a node the edges
            let go, with their scores.
        images: most images that a candidate was scored on.
        outcome: of the race, or ``full``.
        seconds: that it took, where that is known.
    """

    number: int
    epoch: int
    place: str
    chosen: str
    score: str
    runner_up: str
    images: str
    outcome: str
    seconds: str


def decision_rows(run: Run) -> list[DecisionRow]:
    """The decisions in their order; [] of a run without a space or any decision."""
    if run.space is None:
        return []
    seconds = run.decision_seconds
    return [
        _row(run, number, decision, taken)
        for number, (decision, taken) in enumerate(
            zip(run.decisions, seconds, strict=True), start=1
        )
    ]


def decisions_csv(run: Run) -> str:
    """A line for every candidate of every decision, with all its scores."""
    head = ["decision", "epoch", "kind", "cell_type", "place", "round", "candidate", "name"]
    rows: list[list[Any]] = []
    for number, decision in enumerate(run.decisions, start=1):
        for index, candidates in enumerate(decision.candidates):
            columns = {name: getattr(decision, name) for name in (*_SCORES, "strengths")}
            scored = [c for c in columns.values() if c]
            if any(len(column[index]) != len(candidates) for column in scored):
                continue  # pairs of edges (discretization) have a score for two candidates
            for place, candidate in enumerate(candidates):
                values = [c[index][place] if c else "" for c in columns.values()]
                name = _candidate(run, decision, candidate)
                rows.append(
                    [
                        *(number, decision.epoch, decision.kind, decision.cell_type),
                        *(decision.place, index, candidate, name),
                        *(int(candidate in decision.chosen), *values),
                    ]
                )
    return csv_text([*head, "kept", *_SCORES, "strength"], rows)


def _row(run: Run, number: int, decision: Decision, seconds: float | None) -> DecisionRow:
    space = run.space
    assert space is not None
    where = "" if decision.cell_type == "cell" else f"{decision.cell_type} "
    if decision.kind == "op":
        place = where + "edge {}\u2192{}".format(*space.edges[decision.place])
        score, runner_up = _op_scores(run, decision)
    else:
        place = f"{where}node {decision.place}"
        score, runner_up = "", _let_go(run, decision)
    return DecisionRow(
        number=number,
        epoch=decision.epoch,
        place=place,
        chosen=", ".join(_candidate(run, decision, one) for one in decision.chosen),
        score=score if score or runner_up else "nothing to choose",
        runner_up=runner_up,
        images=f"{decision.images:,}" if decision.images else "",
        outcome=", ".join(dict.fromkeys(decision.outcomes)),
        seconds="" if seconds is None else f"{seconds:.2f}",
    )


def _candidate(run: Run, decision: Decision, index: int) -> str:
    assert run.space is not None
    if decision.kind == "op":
        return run.space.primitives[decision.cell_type][decision.place][index]
    return "{}\u2192{}".format(*run.space.edges[index])


def _op_scores(run: Run, decision: Decision) -> tuple[str, str]:
    """Of the operation that was kept, and of the one that came next."""
    rows = [row for row in edge_scores(run, decision.cell_type) if row.edge == decision.place]
    if not rows:
        return "", ""
    (row,) = rows
    ranked = sorted(range(len(row.ops)), key=lambda place: -row.harm[place])
    others = [place for place in ranked if row.ops[place] != row.chosen]
    kept = row.ops.index(row.chosen)
    texts = [
        _number(run, decision, row.values[place], row.errors[place])
        for place in (kept, *others[:1])
    ]
    name = _candidate(run, decision, row.ops[others[0]]) if others else ""
    return texts[0], f"{name} {texts[1]}" if others else ""


def _let_go(run: Run, decision: Decision) -> str:
    """Which edges the rounds of a node let go, with their scores."""
    words = []
    for index, candidates in enumerate(decision.candidates):
        values, errors = decided_by(run, decision, index)
        if len(values) != len(candidates):
            return ""
        later = [*decision.candidates[index + 1 : index + 2], decision.chosen][0]
        for candidate, value, error in zip(candidates, values, errors, strict=True):
            if candidate not in later:
                number = _number(run, decision, value, error)
                words.append(f"{_candidate(run, decision, candidate)} {number}")
    return "; ".join(words)


def _number(run: Run, decision: Decision, value: float, error: float) -> str:
    """A score with its standard error and unit."""
    unit = score_meaning(run, decision.cell_type)[1]
    digits = 3 if unit == "nats" else 1
    plus = f" \u00b1 {error:.{digits}f}" if math.isfinite(error) else ""
    return f"{value:.{digits}f}{plus} {unit}"
