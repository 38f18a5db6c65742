# SPDX-License-Identifier: Apache-2.0
"""Which modules of a model are native calls, which of their operations are not, and why."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import astuple, dataclass, replace

from rich.table import Table
from torch import nn

from darts_fast.accelerate.examine import NATIVE_FORWARDS, Finding, examine
from darts_fast.accelerate.forward import fused_method
from darts_fast.accelerate.structure import CELL, MIXED_OPERATION, describe_by_structure
from darts_fast.nn.plan import has_hooks

_HEADERS = ("module", "kind", "now", "operations fused", "operations run as modules, and why")
_NATIVE = "native by itself"


@dataclass(frozen=True)
class Row:
    """One module of an `Explanation`."""

    module: str
    """Its name in the model, "" for the model itself."""
    kind: str
    """"cell", "mixed operation" or "NAS-Bench-201 cell"."""
    now: str
    """"accelerated", "can be accelerated", "left alone: " and the reason, or "native by itself" of
    modules of this package."""
    fused: str
    """Operations with a native form, counted by kind."""
    modules: str
    """Operations that run as modules, counted by class, each with its reason."""


@dataclass(frozen=True)
class Explanation:
    """What `explain` returns: prints as a table, with `rich.print` as one that fits the screen."""

    rows: tuple[Row, ...]
    """One per module, in the order of `named_modules()`. A cell that is fused as a whole stands for
    the mixed operations in it."""

    def __str__(self) -> str:
        table = [_HEADERS, *map(astuple, self._printed())]
        widths = [max(len(row[i]) for row in table) for i in range(len(_HEADERS))]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
        return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])

    def __rich__(self) -> Table:
        table = Table(*_HEADERS)
        for row in self._printed():
            table.add_row(*(cell.replace("[", "\\[") for cell in astuple(row)))
        return table

    def _printed(self) -> list[Row]:
        """Neighbours that differ in their names alone as one row."""
        printed = []
        for row, group in itertools.groupby(self.rows, lambda row: replace(row, module="")):
            names = [each.module or "(the model)" for each in group]
            name = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]} ({len(names)})"
            printed.append(replace(row, module=name))
        return printed


def explain(model: nn.Module) -> Explanation:
    """What `accelerate` has done to a model, or would do: module by module, operation by operation.

    It changes nothing. Before `accelerate`, and for what has changed since, it makes the same
    proofs, which takes as long.
    """
    found = {finding.name: finding for finding in examine(model)}
    rows = []
    done: set[nn.Module] = set()
    for name, module in model.named_modules():
        if module in done:
            continue
        kind = NATIVE_FORWARDS.get(type(module).forward)
        finding = found.get(name)
        if kind is not None:
            rows.append(Row(name, kind, _NATIVE, "", ""))
            done.update(module.modules())
        elif finding is not None:
            rows.append(_row(finding))
            if finding.method is not None:
                done.update(module.modules())
    return Explanation(tuple(rows))


def _row(finding: Finding) -> Row:
    structure = finding.structure
    kind = structure.kind
    if structure.parts > 1:
        kind += f" on 1/{structure.parts} of the channels"
    fused: Counter[str] = Counter()
    modules: Counter[str] = Counter()
    ops = zip(structure.ops, finding.op_reasons, strict=True)
    for op, reason in ops:
        if not reason and any(has_hooks(part) for part in op.modules()):
            reason = "has hooks"
        if reason or (finding.method is None and kind == MIXED_OPERATION):
            modules[f"{_class(op)}: {reason or 'its mixed operation is left alone'}"] += 1
        else:
            fused[_describe(op)] += 1
    return Row(finding.name, kind, _state(finding), _counts(fused), _counts(modules))


def _state(finding: Finding) -> str:
    if finding.method is None:
        beside = ", its mixed operations one by one" if finding.structure.kind == CELL else ""
        return f"left alone{beside}: {finding.reason}"
    is_there = fused_method(finding.module) is finding.method
    return "accelerated" if is_there else "can be accelerated"


def _class(op: nn.Module) -> str:
    """Name of a class; of a container, of what it holds."""
    name = type(op).__name__
    if type(op) is nn.Sequential:
        return f"{name}({', '.join(type(part).__name__ for part in op)})"
    return name


def _describe(op: nn.Module) -> str:
    parts = describe_by_structure(op)
    assert parts is not None
    kernel = f" {parts.kernel}x{parts.kernel}" if parts.kernel else ""
    dilation = f" dilation {parts.dilation}" if parts.dilation > 1 else ""
    return f"{parts.kind}{kernel}{dilation}"


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counter.items())
