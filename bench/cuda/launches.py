# SPDX-License-Identifier: Apache-2.0
"""Kernels launched per cell, training step and masked evaluation, counted by the emulation.

    python bench/cuda/launches.py [--json FILE]      # needs g++ and objcopy, no GPU

Own kernels are counted by their launchers, which are the real ones. What PyTorch does around them
(stem, classifier, loss, sums of gradients, optimizer) is counted in calls of ATen that are no
views, each of which launches one kernel or more; so are all calls of the plain modules. No count
depends on channels, images or their size, as long as the tables of a cell fit one launch.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from toolkit import ROOT
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(ROOT / "tests"))

from simulated_cell import SimulatedCell

from darts_fast.backend import use_backend
from darts_fast.nn import Cell, build_supernet
from darts_fast.nn.nasbench201 import NAS201SearchCell
from darts_fast.selection.engine import MaskedEvaluation
from darts_fast.spaces import get_space

RECORD = ROOT / "bench/results/cuda-launches.json"
TARGET = 40  # launches of a cell's operations, forward and backward
SPACES = ("s5", "darts", "s1", "s2", "s3", "s4", "nasbench201")
CELL_OPS = ("mixed_cell", "mixed_cell_backward")
_WITHOUT_KERNEL = ("empty", "new_empty", "empty_like", "empty_strided", "_unsafe_view")
_CHANNELS, _IMAGES, _SIZE = 4, 2, 16


@dataclass(frozen=True)
class Launches:
    """Of one thing, done once.

    Attributes:
        own: kernels of this package, by op.
        beside: calls of PyTorch's ops around them.
        plain: calls of PyTorch's ops where modules run as they are.
    """

    name: str
    own: dict[str, int]
    beside: int
    plain: int

    @property
    def operations(self) -> int:
        """Of all operations of its cells, what the target is for."""
        return sum(self.own.get(op, 0) for op in CELL_OPS)


class AtenCalls(TorchDispatchMode):
    """Counts calls of PyTorch's own ops that are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name.partition("::")[2]
        if func.namespace == "aten" and not func.is_view and name not in _WITHOUT_KERNEL:
            self.count += 1
        return func(*args, **(kwargs or {}))


def measure(simulated: SimulatedCell, name: str, call: Callable[[], object]) -> Launches:
    """Something done by plain modules, by the CPU's kernels for what is beside, and emulated."""
    with use_backend("reference"), AtenCalls() as plain:
        call()
    with AtenCalls() as beside:
        call()
    simulated.by_op.clear()
    with simulated.replacing():
        call()
    return Launches(name, dict(sorted(simulated.by_op.items())), beside.count, plain.count)


def cell_step(space: str, cell_type: str) -> Callable[[], None]:
    """One cell of a supernet in training, forward and backward, with all gradients."""
    net = build_supernet(space, channels=_CHANNELS, num_classes=10, layers=3)
    given: dict[nn.Module, tuple[Any, ...]] = {}
    hooks = [
        stage.register_forward_pre_hook(given.__setitem__)
        for stage in net.cells
        if _type_of(stage) == cell_type
    ]
    net(torch.randn(_IMAGES, 3, _SIZE, _SIZE))
    for hook in hooks:
        hook.remove()
    cell, arguments = next(iter(given.items()))
    inputs = [x.detach().requires_grad_() if isinstance(x, Tensor) else x for x in arguments]
    leaves = [x for x in inputs if isinstance(x, Tensor)]

    def step() -> None:
        output: Tensor = cell(*inputs)
        torch.autograd.grad(output.sum(), [*leaves, *cell.parameters()])

    return step


def network_launches(simulated: SimulatedCell) -> list[Launches]:
    """Of a supernet: a step of its weights, one of the alphas, removals of an edge."""
    net = build_supernet("s5", channels=_CHANNELS, num_classes=10, layers=8)
    images = torch.randn(_IMAGES, 3, _SIZE, _SIZE)
    labels = torch.zeros(_IMAGES, dtype=torch.int64)
    parameters = list(net.parameters())
    # As on a device, where that is the default.
    optimizer = torch.optim.SGD(parameters, 0.025, momentum=0.9, weight_decay=3e-4, foreach=True)

    def weight_step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(net(images), labels).backward()
        nn.utils.clip_grad_norm_(parameters, 5.0, foreach=True)
        optimizer.step()

    def alpha_step() -> None:
        loss = functional.cross_entropy(net(images), labels)
        torch.autograd.grad(loss, net.arch_parameters())

    own = net.edge_weights()["normal"].detach()
    tables = []
    for op in range(net.space.num_ops):
        table = own.clone()
        table[0, op] = 0
        tables.append({"normal": table})
    weight_step()  # the first one makes momentum buffers
    of_net = "a supernet of 8 cells of s5"
    return [
        measure(simulated, f"weight step, {of_net}", weight_step),
        measure(simulated, f"architecture step, {of_net}", alpha_step),
        measure(
            simulated,
            f"masked evaluation of {len(tables)} removals, {of_net}",
            lambda: MaskedEvaluation(net, tables)(images, labels),
        ),
    ]


def _type_of(stage: nn.Module) -> str | None:
    if isinstance(stage, Cell):
        return "reduce" if stage.reduction else "normal"
    return "cell" if isinstance(stage, NAS201SearchCell) else None


def table(rows: Sequence[Launches]) -> str:
    """The rows for readers."""
    lines = [
        "| what | operations | preprocessing | running statistics | PyTorch calls beside "
        "| PyTorch calls of plain modules |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        preprocessing = sum(n for op, n in row.own.items() if op.startswith("relu_conv_norm"))
        moved = row.own.get("move_running_statistics", 0)
        lines.append(
            f"| {row.name} | {row.operations} | {preprocessing} | {moved} | {row.beside} "
            f"| {row.plain} |"
        )
    return "\n".join(lines) + "\n"


def page(record: dict[str, Any]) -> str:
    """The record for readers."""
    rows = [Launches(**row) for row in (*record["cells"], *record["networks"])]
    return (
        "# Launches\n\nOwn kernels, counted by their launchers; PyTorch's ops in calls that are no "
        "views,\neach of them one kernel or more. A cell is counted forward and backward, with all "
        f"gradients;\nthe target for its operations is {record['target']}. Cells of s4 draw noise "
        "and run as modules.\nWritten by `python bench/cuda/launches.py`.\n\n" + table(rows)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=RECORD)
    given = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        simulated = SimulatedCell(Path(folder))
        cells = [
            measure(simulated, f"{cell_type} of {space}", cell_step(space, cell_type))
            for space in SPACES
            for cell_type in get_space(space).cell_types
        ]
        networks = network_launches(simulated)
    record = {
        "target": TARGET,
        "cells": [asdict(row) for row in cells],
        "networks": [asdict(row) for row in networks],
    }
    given.json.write_text(json.dumps(record, indent=1) + "\n")
    given.json.with_suffix(".md").write_text(page(record))
    print(table([*cells, *networks]), end="")
    return 1 if any(row.operations > TARGET for row in cells) else 0


if __name__ == "__main__":
    sys.exit(main())
