# SPDX-License-Identifier: Apache-2.0
"""What a cell's kernels must move, per sweep: a normal cell of s5, C = 16 at 32x32, in float32.

A map is N x C x H x W values. What must be read and written in the forward is design 4.2: a state
once in a sweep, whoever reads it, every output of a block and every pooled map once, and a node
written once. The backward's minimum is that of the CPU kernels (bench/README.md, bytes): it reads
every output of a block twice, once for the sums of its norm and once for its gradient, writes and
reads the gradient between the two blocks of a chain, and reads and writes the gradient of a state
once for every node that reads it. Nothing of what only lives between two launches is in it, neither
statistics nor the partial sums of the weights' gradients; but a launch that needs a map for two of
these reads it once, so that a sweep can stay below.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from toolkit import ROOT
from torch import Tensor
from traffic_case import Case, Sweep

sys.path.insert(0, str(ROOT / "tests"))

from simt_build import Build
from simulated_cell import SimulatedCell
from simulator import Simulated

from darts_fast import _ops
from darts_fast.nn import Cell, build_supernet
from darts_fast.nn.fused_cell import norm_arguments

CHANNELS, SIZE = 16, 32
NODES, EDGES = 4, 14
FIRST, CHAINS, POOLS = 4, 2, 2  # blocks on an edge, chains among them, pools of a state
READ = 5  # states that edges leave
FORWARD = {
    # States; first blocks and pools written.
    "first blocks and pools": READ + EDGES * FIRST + READ * POOLS,
    "second blocks": 2 * EDGES * CHAINS,
    # Blocks, pools and the identity of every edge; nodes written.
    "nodes": EDGES * (FIRST + POOLS + 1) + NODES,
}
BACKWARD = {
    # y and y before of a chain; the gradient between them written.
    "second blocks": 3 * EDGES * CHAINS,
    # For the sums, all terms and the nodes' gradients. For the gradients y of first blocks, what
    # arrived behind them, pools, the nodes' gradients, and state and gradient per edge.
    "sums, first blocks and sources": EDGES * (FIRST + POOLS + 1)
    + NODES
    + EDGES * (FIRST + CHAINS + POOLS + 3)
    + NODES,
}
KERNELS = {
    "first blocks and pools": ("cell_convolve/0", "cell_table"),
    "second blocks": ("cell_convolve/1", "cell_grad_inner"),
    "nodes": ("cell_combine",),
    "sums, first blocks and sources": (
        *("cell_table", "cell_products", "cell_grad_norms", "cell_grad_sources"),
        "cell_sum_weights",
    ),
}


def cell_cases(batch: int) -> list[Case]:
    """Forward and backward of the cell's operations."""
    net = build_supernet("s5", channels=CHANNELS, num_classes=10, layers=3)
    cell = net.cells[0]
    assert isinstance(cell, Cell)
    plan = cell._plan()
    assert plan is not None

    def make_map(multiplier: int = 1) -> Tensor:
        shape = (batch, multiplier * CHANNELS, SIZE, SIZE)
        return torch.randn(shape).contiguous(memory_format=torch.channels_last)

    states, grad = [make_map(), make_map()], make_map(plan.multiplier)
    weights = torch.rand(1, plan.width)
    given = norm_arguments(plan.norms, weights)
    convolutions = [conv.weight.detach() for conv in plan.convolutions]
    parameters = (convolutions, given.gammas, given.betas)
    settings = (plan.ops, given.kinds, given.eps, plan.nodes, plan.multiplier, plan.stride, 1)
    running = (given.running_means, given.running_vars)
    saved: list[Tensor] = []

    def forward(simulated: Simulated) -> None:
        arguments = (states, weights, *parameters, *running, *settings, 0, None, 0, True)
        _, *saved[:] = simulated.call(_ops.mixed_cell, *arguments)

    def backward(simulated: Simulated) -> None:
        wanted = [True] * (len(states) + 1 + len(convolutions))
        arguments = (grad, *saved, states, weights, *parameters, *settings, None, 0, wanted)
        simulated.call(_ops._mixed_cell.mixed_cell_backward, *arguments)

    def make(folder: Path) -> Simulated:
        return SimulatedCell(folder, Build.COUNT)

    nbytes = states[0].nbytes
    return [
        Case(
            f"cell of s5 {name}, batch {batch}",
            *("mixed_cell", make, call),
            tuple(Sweep(part, KERNELS[part], maps * nbytes) for part, maps in parts.items()),
        )
        for name, call, parts in (
            ("forward", forward, FORWARD),
            ("backward", backward, BACKWARD),
        )
    ]
