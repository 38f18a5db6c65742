# SPDX-License-Identifier: Apache-2.0
"""How many variants of a network fit into a budget of memory."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from darts_fast.nn import Cell, Network
from darts_fast.nn.nasbench201 import NAS201SearchCell
from darts_fast.nn.plan import CellPlan
from darts_fast.reference import CELL_KINDS
from darts_fast.selection.engine.walk import Walk

_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_SHARE_OF_AVAILABLE = 4
# More memory than this makes nothing faster.
_MOST_BY_DEFAULT = 2**30
# A block that the kernels use again may be by so much larger than what they need.
_REUSE = 4 / 3
# Scratch of the kernels, rounding, what the allocator keeps: a part and a constant.
_MARGIN, _CONSTANT = 1.1, 8 * 2**20
_WITH_MAPS = ("separable", "separable_twice", "dense", "factorized_reduce")


class Need(NamedTuple):
    """Bytes of one stage: once, and for every group."""

    once: int
    per_group: int


def parse_memory(name: str, value: int | str) -> int:
    """Bytes of a number, or of a text such as "512MiB" or "2 GB".

    Raises ValueError, in the name of `name`, for anything else and for less than 1 byte.
    """
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]i?B|B)\s*", value)
        size = int(float(found[1]) * _UNITS[found[2]]) if found else 0
    else:
        size = int(value)
    if size < 1:
        raise ValueError(
            f"{name}: max_memory must be bytes or a text like 512MiB or 2GB, got {value!r}"
        )
    return size


def default_memory() -> int:
    """A quarter of the memory that is available to this process, at most 1 GiB."""
    return min(_MOST_BY_DEFAULT, available_memory() // _SHARE_OF_AVAILABLE)


def available_memory() -> int:
    """Bytes that the system could give to this process now, as far as it tells."""
    found = [8 * _MOST_BY_DEFAULT]
    text = _read("/proc/meminfo")
    match = re.search(r"MemAvailable:\s+(\d+) kB", text)
    if match:
        found = [int(match[1]) * 1024]
    limit, used = _read("/sys/fs/cgroup/memory.max"), _read("/sys/fs/cgroup/memory.current")
    if limit.strip().isdigit() and used.strip().isdigit():
        found.append(max(0, int(limit) - int(used)))
    return min(found)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def stage_needs(walk: Walk, images: Tensor, extra: int) -> list[Need]:
    """What evaluating one stage takes, the states that it reads and writes included.

    The counts are those of the engine's states and of the kernels' buffers.

    Args: extra, bytes that are needed at any stage.
    """
    n, _, height, width = images.shape
    item = images.element_size()
    net = walk.net
    once = images.nbytes + extra + _CONSTANT
    channels = net._C
    # Channels and pixels of the states that a stage reads.
    first = (net._stem_multiplier if isinstance(net, Network) else 1) * channels
    shapes = [(first, height * width)] * (2 if isinstance(net, Network) else 1)
    needs = []
    for stage, operations in zip(walk.stages, walk.operations, strict=True):
        searched = isinstance(stage, (Cell, NAS201SearchCell))
        halves = (isinstance(stage, Cell) and stage.reduction) or not searched
        pixels_in = shapes[-1][1]
        pixels = pixels_in // 4 if halves else pixels_in
        channels *= 2 if halves else 1
        one_map = n * channels * pixels * item
        inputs = sum(n * c * p * item for c, p in shapes)
        out = (stage._multiplier if isinstance(stage, Cell) else 1) * one_map
        prepared = len(shapes) * n * channels * pixels_in * item if searched else 0
        plan = operations.plan if operations is not None else None
        drawn = len(operations.drawn) if operations is not None else 0
        maps = _maps(plan) if plan is not None else _module_maps(walk, searched)
        nodes = plan.nodes if plan is not None else 0
        # Per image and channel two sums in double precision of every map.
        buffers = int(maps * (one_map * _REUSE + 16 * n * channels))
        # The inputs once more where they are gathered, and per node a summand and its copy.
        grouped = 2 * inputs + 2 * prepared + (3 * nodes + drawn) * one_map + out
        kept = once + inputs + 2 * prepared + (2 * nodes + drawn) * one_map
        if plan is None:  # one group at a time
            kept, buffers = kept + buffers, out
        needs.append(Need(int(_MARGIN * kept), int(_MARGIN * (grouped + buffers))))
        produced = (out // (n * pixels * item) if n else 0, pixels)
        shapes = [*shapes[1:], produced]
    return needs


def groups_that_fit(needs: Sequence[Need], budget: int | None) -> int:
    """How many groups can go through all these stages together.

    Args: budget, bytes; None for the default, which never stops what one full forward could do.

    Raises ValueError if it is not even one.
    """
    once, each = max(need.once for need in needs), max(need.per_group for need in needs)
    if budget is None:
        return max(1, (default_memory() - once) // each)
    if once + each > budget:
        raise ValueError(
            f"MaskedEvaluation: max_memory must hold one table, "
            f"{(once + each) / 2**20:.1f} MiB for a batch of this size, "
            f"got {budget / 2**20:.1f} MiB"
        )
    return (budget - once) // each


def _maps(plan: CellPlan) -> int:
    """At most so many maps are there at a time: those of two nodes that follow each other, or of
    one node with both blocks of its chains, beside pools and nodes."""
    ends = list(zip(plan.ops[0::5], plan.ops[1::5], strict=True))
    kinds = [CELL_KINDS[number] for number in plan.ops[2::5]]
    pools = {(ends[k][0], kind) for k, kind in enumerate(kinds) if "pool" in kind}
    read = {source for source, _ in ends if source >= plan.inputs}
    entering = Counter(
        node for (_, node), kind in zip(ends, kinds, strict=True) if kind in _WITH_MAPS
    )
    chains = Counter(
        node for (_, node), kind in zip(ends, kinds, strict=True) if kind == "separable_twice"
    )
    most = max(
        (entering[node] + max(entering[node - 1], chains[node]) for _, node in ends), default=0
    )
    return most + len(pools) + len(read)


def _module_maps(walk: Walk, searched: bool) -> int:
    """Of a stage that runs as its modules, one group at a time: at most two maps an operation."""
    space = walk.net.space
    return 2 * space.num_edges * space.num_ops if searched else 8
