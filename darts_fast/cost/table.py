# SPDX-License-Identifier: Apache-2.0
"""What every operation on every edge adds to the derived network.

A derived network has one module for each entry of its genotype in every cell of the type, and all
else in it does not depend on the genotype. So each resource is a sum:

    cost(architecture) = base + sum over its entries (edge, op) of table[cell type][edge][op]

with ``table`` summed over the cells of the type at their channels and image sizes, and ``base`` the
network of skip connections alone less its entries. For parameters and multiply-adds the sum is
exact; for latency it is a model, from times of single operations on this machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from darts_fast.cost.count import count
from darts_fast.cost.latency import REPEATS, forward_ms
from darts_fast.derive import NasBench201Network, NetworkCIFAR, build_derived
from darts_fast.derive.nasbench201 import InferCell
from darts_fast.nn.nasbench201 import OPS as NASBENCH201_OPS
from darts_fast.nn.operations import OPS
from darts_fast.spaces import Genotype, Space, arch_from_ops, get_space, ops_from_arch

__all__ = ["RESOURCES", "CostTable", "DerivedSizes", "cost_table", "entries"]

RESOURCES = ("macs", "params", "latency_ms")

SKIP = "skip_connect"


@dataclass(frozen=True)
class DerivedSizes:
    """The derived network that costs are of.

    Args:
        channels: of the first cells.
        layers: cells; for NAS-Bench-201 cells per stage.
        num_classes: outputs.
        image_size: height and width.
        batch: images of a measured forward pass.
        repeats: forward passes of which the median counts.
    """

    channels: int
    layers: int
    num_classes: int
    image_size: tuple[int, int]
    batch: int = 1
    repeats: int = REPEATS


@dataclass(frozen=True)
class CostTable:
    """One resource of the networks of a space; see the module.

    Attributes:
        resource: ``"macs"`` (of one image), ``"params"`` or ``"latency_ms"`` (of one batch).
        space: whose networks.
        base: what does not depend on the architecture.
        tables: by cell type, for every edge the cost of each operation in all cells of the type.
    """

    resource: str
    space: Space
    base: float
    tables: dict[str, list[list[float]]]

    def total(self, architecture: Genotype | str) -> float:
        """Of the derived network of an architecture of the space."""
        picked = entries(self.space, architecture)
        return self.base + sum(self.tables[cell][edge][op] for cell, edge, op in picked)


def entries(space: Space, architecture: Genotype | str) -> list[tuple[str, int, int]]:
    """The (cell type, edge, operation) of which an architecture consists, by their indices.

    Raises:
        ValueError: it is none of the space.
    """
    named: list[tuple[str, int, str]]
    if isinstance(architecture, str):
        (cell,) = space.cell_types
        named = [(cell, edge, op) for edge, op in enumerate(ops_from_arch(architecture))]
    else:
        named = [
            (cell, space.edges.index((state, 2 + position // 2)), op)
            for cell in space.cell_types
            for position, (op, state) in enumerate(getattr(architecture, cell))
        ]
    for cell, edge, op in named:
        if op not in space.primitives[cell][edge]:
            raise ValueError(
                f"cost: {cell} edge {edge} of space {space.name} offers "
                f"{', '.join(space.primitives[cell][edge])}, got {op}"
            )
    return [(cell, edge, space.primitives[cell][edge].index(op)) for cell, edge, op in named]


def cost_table(resource: str, space: Space | str, sizes: DerivedSizes) -> CostTable:
    """The costs of the networks of a space. For latency this runs every operation that differs.

    Raises:
        ValueError: an unknown resource, or sizes that make no network.
    """
    if resource not in RESOURCES:
        raise ValueError(f"cost: resource must be one of {', '.join(RESOURCES)}, got {resource!r}")
    space = get_space(space)
    darts = space.select_topology
    known: dict[tuple[str, int, int, tuple[int, int]], float] = {}

    def meter(build: Callable[[], nn.Module], channels: int, size: tuple[int, int]) -> float:
        if resource == "latency_ms":
            with torch.random.fork_rng(devices=[]):
                net = build()
            return forward_ms(net, (sizes.batch, channels, *size), sizes.repeats)
        with torch.device("meta"):
            net = build()
        cost = count(net, (channels, *size))
        return float(cost.macs if resource == "macs" else cost.parameters)

    def of_place(place: _Place, edge: int, op: str) -> float:
        reads_input = place.reduction and space.edges[edge][0] < 2
        stride = 2 if reads_input else 1
        size = place.size
        if place.reduction and not reads_input:
            size = ((size[0] + 1) // 2, (size[1] + 1) // 2)
        key = (op, place.channels, stride, size)
        if key not in known:
            known[key] = meter(
                lambda: _operation(darts, op, place.channels, stride), place.channels, size
            )
        return known[key]

    places = _places(sizes, darts)
    tables = {
        cell: [
            [sum(of_place(place, edge, op) for place in places if place.cell == cell) for op in ops]
            for edge, ops in enumerate(space.primitives[cell])
        ]
        for cell in space.cell_types
    }
    skips = sum(
        of_place(place, edge, SKIP) for place in places for edge in _skip_edges(space, darts)
    )
    whole = meter(lambda: _skip_network(sizes, darts), 3, sizes.image_size)
    return CostTable(resource, space, whole - skips, tables)


@dataclass(frozen=True)
class _Place:
    """A cell of the derived network, and what its operations are given."""

    cell: str
    reduction: bool
    channels: int
    size: tuple[int, int]


def _operation(darts: bool, op: str, channels: int, stride: int) -> nn.Module:
    if darts:
        return OPS[op](channels, stride, True)
    return NASBENCH201_OPS[op](channels, channels, stride, True, True)


def _skip_edges(space: Space, darts: bool) -> list[int]:
    """The edges of `_skip_network`."""
    if not darts:
        return list(range(space.num_edges))
    return [edge for edge, (state, _) in enumerate(space.edges) if state < 2]


def _skip_network(sizes: DerivedSizes, darts: bool) -> NetworkCIFAR | NasBench201Network:
    cell = [(SKIP, state) for _ in range(4) for state in (0, 1)]
    architecture: Genotype | str = arch_from_ops([SKIP] * 6)
    if darts:
        architecture = Genotype(cell, range(2, 6), cell, range(2, 6))
    return build_derived(
        architecture,
        channels=sizes.channels,
        num_classes=sizes.num_classes,
        layers=sizes.layers,
    )


def _places(sizes: DerivedSizes, darts: bool) -> list[_Place]:
    """The searched cells of the network, found by passing shapes through it."""
    with torch.device("meta"):
        net = _skip_network(sizes, darts).eval()
    places: list[_Place] = []

    def note(cell: str, state: Tensor) -> None:
        places.append(_Place(cell, cell == "reduce", state.shape[1], (*state.shape[2:],)))

    for index, module in enumerate(net.cells):
        if isinstance(net, NetworkCIFAR):
            cell = "reduce" if net.reductions[index] else "normal"
            module.get_submodule("preprocess1").register_forward_hook(
                lambda _, inputs, output, cell=cell: note(cell, output)
            )
        elif isinstance(module, InferCell):
            module.register_forward_hook(lambda _, inputs, output: note("cell", output))
    with torch.no_grad():
        net(torch.empty(1, 3, *sizes.image_size, device="meta"))
    return places
