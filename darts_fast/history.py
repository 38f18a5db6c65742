# SPDX-License-Identifier: Apache-2.0
"""What happened in a run, event by event, for reports and for the status of a run under way.

``history.jsonl`` has one JSON object a line. Events that carry the same name (``event``, ``phase``,
and ``epoch`` or ``index``) tell of the same thing: a run that goes on from a checkpoint does some
epochs again, and the last line counts. A line that a killed process left half written is skipped.

====================  ===================================================================
event                 fields beside ``event`` and ``time`` (seconds since 1970)
====================  ===================================================================
``process``           arguments, environment, resumed
``epoch``             phase (``search``, ``tune``, ``train LABEL``), epoch, epochs, steps, seconds,
                      learning_rate, train_loss, train_acc, and where they exist valid_loss,
                      valid_acc, valid_seconds, alphas, genotype
``decision``          index, seconds, genotype and the fields of `selection.Decision`
``phase``             phase, seconds, cpu_seconds, summed over all processes
====================  ===================================================================

Losses are in nats, accuracies in percent, times in seconds.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["HISTORY", "append_event", "read_events"]

HISTORY = "history.jsonl"
_NAMED_BY = ("event", "phase", "epoch", "index")


def append_event(path: str | Path, event: Mapping[str, Any]) -> None:
    """Add one event, with the time, as a line of its own, and flush it to the disk.

    Raises:
        OSError: the file cannot be written.
    """
    line = json.dumps({**event, "time": round(time.time(), 3)}).encode() + b"\n"
    with open(path, "a+b") as file:
        if file.seek(0, os.SEEK_END) > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # the rest of a line whose writer was killed
                line = b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def read_events(path: str | Path) -> list[dict[str, Any]]:
    """The events in the order in which they first happened; [] where there is no file.

    Of several events of the same name the last counts, but every ``process`` is kept.
    """
    try:
        lines = Path(path).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    events: dict[tuple[Any, ...], dict[str, Any]] = {}
    for number, line in enumerate(lines):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if not isinstance(event, dict) or not isinstance(event.get("event"), str):
            continue
        name: tuple[Any, ...] = tuple(str(event.get(key)) for key in _NAMED_BY)
        if event["event"] == "process":
            name = (*name, number)
        events[name] = event
    return list(events.values())
