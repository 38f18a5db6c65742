# SPDX-License-Identifier: Apache-2.0
"""NAS-Bench-201 architectures (Dong and Yang, ICLR 2020): strings, official indices, isomorphism.

A cell has 4 nodes and 6 edges ordered ``1<-0, 2<-0, 2<-1, 3<-0, 3<-1, 3<-2``, each with one of five
operations: 15,625 cells. Node 0 is the input; a node is the sum of its incoming edges; the last
node is the output.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from functools import lru_cache

from darts_fast.spaces.tables import NASBENCH201_EDGES, NASBENCH201_PRIMITIVES

NUM_ARCHITECTURES = len(NASBENCH201_PRIMITIVES) ** len(NASBENCH201_EDGES)

# The benchmark's authors shuffled the enumeration with this seed; the order is part of its data.
_OFFICIAL_SEED = 88


def arch_from_ops(ops: Sequence[str]) -> str:
    """``|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`` from the six operations in edge order.

    Raises:
        ValueError: not six operations of the space.
    """
    unknown = [op for op in ops if op not in NASBENCH201_PRIMITIVES]
    if unknown or len(ops) != len(NASBENCH201_EDGES):
        raise ValueError(
            f"nasbench201: an architecture has {len(NASBENCH201_EDGES)} operations out of "
            f"{', '.join(NASBENCH201_PRIMITIVES)}, got {list(ops)}"
        )
    nodes: dict[int, str] = {}
    for op, (source, node) in zip(ops, NASBENCH201_EDGES, strict=True):
        nodes[node] = nodes.get(node, "|") + f"{op}~{source}|"
    return "+".join(nodes.values())


def ops_from_arch(arch: str) -> tuple[str, ...]:
    """The six operations, in edge order, of an architecture string.

    Raises:
        ValueError: the string is not of the form that `arch_from_ops` gives.
    """
    text = arch.strip()
    ops = tuple(part.split("~")[0] for part in text.replace("+", "").split("|") if part)
    if (
        len(ops) != len(NASBENCH201_EDGES)
        or any(op not in NASBENCH201_PRIMITIVES for op in ops)
        or arch_from_ops(ops) != text
    ):
        raise ValueError(
            "nasbench201: an architecture must read |op~0|+|op~0|op~1|+|op~0|op~1|op~2| with "
            f"operations out of {', '.join(NASBENCH201_PRIMITIVES)}, got {arch!r}"
        )
    return ops


@lru_cache(maxsize=1)
def _official_order() -> tuple[tuple[int, ...], ...]:
    """All cells as operation indices in the benchmark's order.

    The shuffle is spelled out (Fisher-Yates from the end, positions drawn by rejection from the
    generator's bits) because only the bits of `random.Random` are the same in every Python version.
    """
    cells = list(
        itertools.product(range(len(NASBENCH201_PRIMITIVES)), repeat=len(NASBENCH201_EDGES))
    )
    bits = random.Random(_OFFICIAL_SEED).getrandbits
    for last in range(len(cells) - 1, 0, -1):
        width = (last + 1).bit_length()
        chosen = bits(width)
        while chosen > last:
            chosen = bits(width)
        cells[last], cells[chosen] = cells[chosen], cells[last]
    return tuple(cells)


@lru_cache(maxsize=1)
def _official_positions() -> dict[tuple[int, ...], int]:
    return {cell: index for index, cell in enumerate(_official_order())}


def arch_from_index(index: int) -> str:
    """The architecture string at an official index, 0 to 15,624 (1462: all ``nor_conv_3x3``).

    Raises:
        ValueError: the index is out of range.
    """
    if not 0 <= index < NUM_ARCHITECTURES:
        raise ValueError(
            f"nasbench201: an index lies between 0 and {NUM_ARCHITECTURES - 1}, got {index}"
        )
    return arch_from_ops([NASBENCH201_PRIMITIVES[op] for op in _official_order()[index]])


def index_from_arch(arch: str) -> int:
    """The official index of an architecture string.

    Raises:
        ValueError: not an architecture string.
    """
    ops = ops_from_arch(arch)
    return _official_positions()[tuple(NASBENCH201_PRIMITIVES.index(op) for op in ops)]


def unique_string(arch: str) -> str:
    """The benchmark's own name of an isomorphism class: 6,466 different ones over all cells.

    Skips take their source's name and edges that carry zero are written ``#``. The zeros stay in
    the sums, so cells that differ only in their number of zeros have different names, and a result
    that two edges share has the name of one computed twice; `isomorphism.canonical_form` is exact
    in both.
    """
    ops = iter(ops_from_arch(arch))
    names = ["0"]
    for node in range(1, 4):
        terms = []
        for source, op in zip(range(node), ops, strict=False):
            if op == "none" or names[source] == "#":
                terms.append("#")
            elif op == "skip_connect":
                terms.append(names[source])
            else:
                terms.append(f"({names[source]})@{op}")
        names.append("+".join(sorted(terms)))
    return names[-1]
