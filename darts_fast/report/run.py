# SPDX-License-Identifier: Apache-2.0
"""What a run directory tells, read for a report; a run under way or cut off tells less."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from darts_fast.history import HISTORY, read_events
from darts_fast.runs import CONFIG, GENOTYPE, RESULTS, RunDirectory, RunDirectoryError
from darts_fast.selection import Decision
from darts_fast.selection.schedule import topology_nodes
from darts_fast.spaces import SPACES, Genotype, Space, read_genotype

__all__ = ["Run", "cell_name", "open_runs"]

_COMMANDS = ("search", "select", "train")
_DECISION = {field.name for field in fields(Decision)}


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        path: its directory.
        name: short, and different from that of every other run of the report.
        settings: of ``config.json``.
        results: of ``results.json``; None while the run has not ended.
        events: of its history, [] of a run made before there was one.
    """

    path: Path
    name: str
    settings: dict[str, Any]
    results: dict[str, Any] | None
    events: list[dict[str, Any]]

    @classmethod
    def read(cls, path: str | Path, name: str | None = None) -> Run:
        """The run in a directory.

        Raises:
            RunDirectoryError: there is none, it is of none of search, select and train, or a file
                in it is damaged.
        """
        directory = RunDirectory.open(path)
        settings = directory.read_json(CONFIG)
        if not isinstance(settings, dict) or settings.get("command") not in _COMMANDS:
            raise RunDirectoryError(
                f"run directory {directory.path}: {CONFIG} must be of search, select or train"
            )
        settings = {**settings.get("search", {}), **settings}
        results = None
        if (directory.path / RESULTS).is_file():
            results = directory.read_json(RESULTS)
            if not isinstance(results, dict):
                raise RunDirectoryError(f"{directory.path / RESULTS}: must be a JSON object")
        events = read_events(directory.path / HISTORY)
        return cls(directory.path, name or directory.path.name, settings, results, events)

    @property
    def finished(self) -> bool:
        """Whether the run has written its results."""
        return self.results is not None

    @property
    def searched(self) -> bool:
        """Whether it is of ``search`` or ``select``; else of ``train``."""
        return bool(self.settings["command"] != "train")

    @property
    def space(self) -> Space | None:
        """The search space; None of ``train``."""
        return SPACES.get(str(self.settings.get("space")))

    @property
    def label(self) -> str:
        """Of the network that the run is about: the selection's name, or ``given``."""
        return str(self.settings["select"]) if self.searched else "given"

    @cached_property
    def genotypes(self) -> dict[str, Genotype | str]:
        """What was found, by label: the selected one first, then magnitude's and the random one."""
        texts: dict[str, str | None] = {self.label: self._selected_text()}
        results = self.results or {}
        if self.searched:
            texts.setdefault("magnitude", results.get("magnitude_genotype"))
        for row in self.derived:
            texts.setdefault(row["selection"], row["genotype"])
        return {label: read_genotype(text) for label, text in texts.items() if text}

    @property
    def genotype(self) -> Genotype | str | None:
        """What was selected, or else what there is so far."""
        return self.genotypes.get(self.label) or self.genotype_so_far

    @property
    def genotype_so_far(self) -> Genotype | str | None:
        """Of the largest weights, or of the decisions made, when the run last recorded it."""
        texts = [event["genotype"] for event in self.events if event.get("genotype")]
        return read_genotype(texts[-1]) if texts else None

    def epochs(self, phase: str) -> list[dict[str, Any]]:
        """The epochs of a phase: ``search``, ``tune`` or ``train LABEL``."""
        found = [
            event
            for event in self.events
            if event["event"] == "epoch" and event.get("phase") == phase
        ]
        if not found and phase == "search":
            return list((self.results or {}).get("history", []))
        return sorted(found, key=lambda event: int(event["epoch"]))

    @property
    def trained_phases(self) -> list[str]:
        """The phases ``train LABEL`` in their order."""
        phases = [str(event["phase"]) for event in self.events if event["event"] == "epoch"]
        return [phase for phase in dict.fromkeys(phases) if phase.startswith("train ")]

    @property
    def steps_per_second(self) -> dict[str, float]:
        """Training steps by kind of phase: ``search``, ``tune``, ``train LABEL``."""
        found = {}
        for phase in ("search", "tune", *self.trained_phases):
            timed = [event for event in self.epochs(phase) if event.get("seconds")]
            if timed:
                steps = sum(int(event["steps"]) for event in timed)
                found[phase] = steps / sum(float(event["seconds"]) for event in timed)
        return found

    @property
    def derived(self) -> list[dict[str, Any]]:
        """A row for every network that was trained to its end."""
        return list((self.results or {}).get("derived", []))

    @property
    def networks(self) -> dict[str, dict[str, Any]]:
        """The same rows by label."""
        return {row["selection"]: row for row in self.derived}

    @cached_property
    def decisions(self) -> list[Decision]:
        """Of the selection, as far as it came."""
        found = [event for event in self.events if event["event"] == "decision"]
        if not found:
            found = list((self.results or {}).get("decisions", []))
        return [
            Decision(**{name: value for name, value in event.items() if name in _DECISION})
            for event in found
        ]

    @property
    def total_decisions(self) -> int:
        """Of the whole selection: the edges and, where topology is selected, the nodes."""
        if self.space is None:
            return 0
        places = self.space.num_edges + len(topology_nodes(self.space))
        return len(self.space.cell_types) * places

    @property
    def decision_seconds(self) -> list[float | None]:
        """What each decision took, as far as it is known."""
        found = [event.get("seconds") for event in self.events if event["event"] == "decision"]
        return found or [None] * len(self.decisions)

    def weights(self, cell_type: str) -> tuple[list[int], torch.Tensor]:
        """Search epochs (from 1) and ``softmax(alpha)`` after each, [epochs, edges, ops]."""
        found = [event for event in self.epochs("search") if event.get("alphas")]
        tables = [torch.tensor(event["alphas"][cell_type]) for event in found]
        weights = torch.stack(tables).softmax(-1) if tables else torch.empty(0)
        return [int(event["epoch"]) + 1 for event in found], weights

    def criterion(self, cell_type: str) -> str:
        """What a removal was judged by: ``"acc"`` or ``"loss"``."""
        settings = self.settings
        return str(settings.get(f"proj_crit_{cell_type}") or settings.get("proj_crit", "acc"))

    @property
    def seconds(self) -> dict[str, float]:
        """Wall seconds by phase, of all processes; a phase under way is not in it."""
        if self.results is not None:
            return dict(self.results.get("seconds", {}))
        return {
            str(event["phase"]): float(event["seconds"])
            for event in self.events
            if event["event"] == "phase"
        }

    @property
    def environment(self) -> dict[str, Any]:
        """Machine and versions of the last process."""
        processes = self._processes
        if processes:
            return dict(processes[-1].get("environment", {}))
        return dict((self.results or {}).get("environment", {}))

    @property
    def commands(self) -> list[str]:
        """The command line of every process that worked on the run."""
        words = [event.get("arguments", []) for event in self._processes]
        if not words and self.results is not None and "arguments" in self.results:
            words = [self.results["arguments"]]
        return [shlex.join(["darts-fast", *map(str, arguments)]) for arguments in words]

    @property
    def _processes(self) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == "process"]

    def _selected_text(self) -> str | None:
        if self.results is not None and "genotype" in self.results:
            return str(self.results["genotype"])
        path = self.path / GENOTYPE
        return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def open_runs(paths: Sequence[str | Path]) -> list[Run]:
    """Several runs, named by their directories, with numbers where those are the same.

    Raises:
        RunDirectoryError: see `Run.read`.
    """
    runs: list[Run] = []
    for path in paths:
        base = Path(path).resolve().name or str(path)
        name, number = base, 1
        while any(run.name == name for run in runs):
            number += 1
            name = f"{base} ({number})"
        runs.append(Run.read(path, name))
    return runs


def cell_name(cell_type: str) -> str:
    """``normal cell``, ``reduction cell`` or ``cell``, for a title."""
    return {"normal": "normal cell", "reduce": "reduction cell"}.get(cell_type, cell_type)
