# SPDX-License-Identifier: Apache-2.0
"""What a run does not tell, and why: the sentences that stand where a picture would."""

from __future__ import annotations

from darts_fast.report.run import Run

__all__ = ["no_command", "no_networks", "no_result", "no_scores", "no_weights"]

_NO_HISTORY = (
    "It has no history.jsonl, so it was made before runs kept one, or the file is gone: what is "
    "not in its results is not known."
)
_TRAINED_ONLY = "It trained a given architecture and searched nothing."


def no_result(run: Run) -> list[str]:
    """Why there is no architecture, or not the last one."""
    found = []
    if not run.finished:
        found.append("The run has not finished; what is here is as far as it has come.")
    if run.label in run.genotypes:
        return found
    if run.genotype_so_far is not None:
        what = "that of its decisions so far" if run.decisions else "that of its largest weights"
        found.append(f"No architecture has been selected yet: shown is {what}.")
    else:
        found.append("No architecture has been recorded yet.")
    return found


def no_networks(run: Run) -> list[str]:
    """Why no network was trained from scratch."""
    if run.derived or run.trained_phases:
        return []
    if run.searched and not run.settings.get("derive"):
        return ["No network was trained from what it found: the search ran without --derive."]
    return [
        "No network has been trained yet."
        if not run.finished
        else "The training of its networks was not recorded. " + _NO_HISTORY
    ]


def no_weights(run: Run) -> list[str]:
    """Why there are no trajectories of the architecture weights."""
    if not run.searched:
        return [_TRAINED_ONLY]
    if any(event.get("alphas") for event in run.epochs("search")):
        return []
    if not run.events:
        return [_NO_HISTORY]
    if run.settings.get("epochs") == 0:
        return ["The supernet was not trained, so its architecture weights did not move."]
    return ["No epoch of the search has ended yet."]


def no_scores(run: Run) -> list[str]:
    """Why there are no scores, or not all of them."""
    if not run.searched:
        return [_TRAINED_ONLY]
    if run.settings.get("select") == "magnitude":
        return [
            "It selected by magnitude: nothing was removed and nothing scored, the architecture "
            "weights decided."
        ]
    if not run.decisions:
        if run.finished:
            return ["Its decisions were not recorded. " + _NO_HISTORY]
        return ["The run has not decided anything yet."]
    if not run.finished:
        undecided = run.total_decisions - len(run.decisions)
        if undecided > 0:
            made, total = len(run.decisions), run.total_decisions
            return [f"{made} of {total} decisions have been made; the rest is missing."]
    return []


def no_command(run: Run) -> list[str]:
    """Why the command is not known."""
    return [] if run.commands else ["The command was not recorded. " + _NO_HISTORY]
