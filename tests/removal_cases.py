# SPDX-License-Identifier: Apache-2.0
"""Small supernets, tables that change them, and the loop of full forwards as the oracle."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from darts_fast.nn import Supernet, build_supernet
from darts_fast.selection.engine.restore import keyed_draws

CLASSES = 3
SPACES = ("s1", "s2", "s3", "s4", "s5", "nasbench201")

Table = dict[str, Tensor]
Batches = list[tuple[Tensor, Tensor]]


class Sums(NamedTuple):
    """[tables, batches]."""

    loss: Tensor
    correct: Tensor


def small_net(space: str, *, layers: int = 5, projected: bool = False) -> Supernet:
    """Alphas that tell the operations apart, and running statistics that say something."""
    torch.manual_seed(0)
    layers = 1 if space == "nasbench201" else layers
    net = build_supernet(space, channels=4, num_classes=CLASSES, layers=layers)
    with torch.no_grad():
        for alpha in net.arch_parameters():
            alpha.copy_(torch.randn(alpha.shape))
        net(torch.randn(8, 3, 16, 16))
    if projected:
        _project(net)
    return net


def _project(net: Supernet) -> None:
    for cell_type in net.space.cell_types:
        for edge in (1, 3, 5):
            net.projection.project_op(cell_type, edge, edge % net.space.num_ops)
        if net.space.select_topology:
            net.projection.project_edges(cell_type, 4, [5, 7])


def small_batches(sizes: Sequence[int] = (5, 3)) -> Batches:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(size, 3, 16, 16, generator=generator),
            torch.randint(CLASSES, (size,), generator=generator),
        )
        for size in sizes
    ]


def without(net: Supernet, *places: tuple[str, int, int | None]) -> Table:
    """The table that removes (cell type, edge, op) together; op None stands for the edge."""
    table = {name: weights.detach().clone() for name, weights in net.edge_weights().items()}
    for cell_type, edge, op in places:
        table[cell_type][edge, slice(None) if op is None else op] = 0
    return {name: table[name] for name in {place[0] for place in places}}


def mixed_tables(net: Supernet) -> list[Table]:
    """The base, single operations, whole edges, pairs of both, several cell types, any weights."""
    space = net.space
    last = space.num_edges - 1
    first, other = space.cell_types[0], space.cell_types[-1]
    ops = range(0, space.num_ops, 1 + space.num_ops // 3)
    generator = torch.Generator().manual_seed(2)
    shape = (space.num_edges, space.num_ops)
    return [
        {},
        *(without(net, (t, e, o)) for t in space.cell_types for e in (0, 4, last) for o in ops),
        *(without(net, (t, e, None)) for t in space.cell_types for e in (2, last - 1)),
        without(net, (first, 1, 0), (first, last, 1)),
        without(net, (first, 3, None), (other, 0, 1)),
        without(net, (other, 2, None), (other, 3, None)),
        {other: torch.rand(shape, generator=generator)},
        {name: torch.randn(shape, generator=generator) for name in space.cell_types},
    ]


def naive(net: Supernet, batches: Batches, tables: Sequence[Table], *, bn: str = "batch") -> Sums:
    """One full forward per table and batch, on a copy of the network."""
    trial = copy.deepcopy(net).train(bn != "running")
    loss = torch.zeros(len(tables), len(batches), dtype=torch.float64)
    correct = torch.zeros(len(tables), len(batches), dtype=torch.int64)
    with torch.no_grad():
        for b, (images, labels) in enumerate(batches):
            for t, table in enumerate(tables):
                with keyed_draws(trial, 0, b):
                    logits = trial(images, weights=table)
                loss[t, b] = functional.cross_entropy(logits.double(), labels, reduction="sum")
                correct[t, b] = (logits.argmax(1) == labels).sum()
    return Sums(loss, correct)


def assert_same_scores(found: Sums, expected: Sums, batches: Batches) -> None:
    """Loss per table to 1e-5, and the decisions that are made from the two."""
    images = sum(len(labels) for _, labels in batches)
    losses = [sums.loss.sum(1) / images for sums in (found, expected)]
    torch.testing.assert_close(*losses, rtol=0, atol=1e-5)
    correct = [sums.correct.sum(1) for sums in (found, expected)]
    assert (correct[0] - correct[1]).abs().max() <= 1
    leading = losses[1].sort(descending=True).values
    if leading[0] - leading[1] > 2e-5:
        assert losses[0].argmax() == losses[1].argmax()
    fewest = correct[1].sort().values
    if fewest[1] - fewest[0] > 2:
        assert correct[0].argmin() == correct[1].argmin()
