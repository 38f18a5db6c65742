# SPDX-License-Identifier: Apache-2.0
"""Long analyses whose results come one after another and are kept, so that a later process goes
on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from darts_fast.cli.checkpoints import Checkpoints
from darts_fast.cli.console import RunReporter
from darts_fast.cli.options import previous_option, with_options
from darts_fast.reporter import Interrupted
from darts_fast.runs import CONFIG, RunDirectory, RunDirectoryError
from darts_fast.seeding import rng_state, set_rng_state

__all__ = ["results_of", "resume_options"]

Step = TypeVar("Step")

resume_options = with_options(
    click.option("--resume", is_flag=True, help="Go on with this analysis where it stopped."),
    previous_option,
)


def results_of(
    name: str,
    out: RunDirectory,
    steps: Sequence[Step],
    work: Callable[[Step, Callable[[], None]], Any],
    settings: Mapping[str, Any],
) -> list[Any]:
    """What `work` gives for every step, saved after each in the directory ``out/name``.

    Args:
        work: takes a step and what it is to call often, which raises where the process is to stop;
            the step is then done again. It gives plain values.
        settings: what the results depend on. ``--resume`` must come with the same.

    Raises:
        RunDirectoryError: there is nothing to go on with, or it had other settings; as
            `Checkpoints`.
        Stopped: a signal ended the analysis.
    """
    flags = click.get_current_context().params
    if flags["previous"] and not flags["resume"]:
        raise ValueError("--previous: belongs to --resume")
    wanted = json.loads(json.dumps(settings))
    path = out.path / name
    if flags["resume"]:
        place = RunDirectory.open(path)
        before = place.read_json(CONFIG)
        if before != wanted:
            changed = ", ".join(key for key in wanted if wanted[key] != before.get(key))
            raise RunDirectoryError(f"--resume: {path} was begun with other settings: {changed}")
        place.lock()
    else:
        place = RunDirectory.create(path, overwrite=True)
        place.write_json(CONFIG, wanted)
    click.get_current_context().call_on_close(place.unlock)
    reporter = RunReporter(place)
    checkpoints = Checkpoints(place, reporter, lambda words: f"the same command and {words}")
    results: list[Any] = []

    def restore(state: Mapping[str, Any]) -> None:
        results.extend(state["results"])
        set_rng_state(state["rng"])

    def pause() -> None:
        if reporter.stopping:
            raise Interrupted

    with checkpoints.guarded():
        if flags["resume"]:
            checkpoints.load(restore, previous=flags["previous"])
        reporter.start(name, len(steps), len(results))
        for step in steps[len(results) :]:
            results.append(work(step, pause))
            reporter.advance()
            checkpoints.save({"results": results, "rng": rng_state()})
            pause()
        reporter.finish()
    return results
