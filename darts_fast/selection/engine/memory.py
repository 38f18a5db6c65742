# SPDX-License-Identifier: Apache-2.0
"""How many variants of a network fit into a budget of memory."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from darts_fast.nn import Cell, Network
from darts_fast.nn.nasbench201 import NAS201SearchCell
from darts_fast.nn.plan import CellPlan
from darts_fast.reference import CELL_KINDS
from darts_fast.selection.engine.split import MOST_EDGES_ONCE
from darts_fast.selection.engine.walk import Walk

_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_SHARE_OF_AVAILABLE = 4
# Of what is free on a CUDA device, where the allocator leaves gaps and others may be at work.
_SHARE_OF_DEVICE = 2
# More memory than this makes nothing faster on a CPU.
_MOST_BY_DEFAULT = 2**30
# Scratch of the kernels, rounding, what the allocator keeps: a part and a constant.
_MARGIN, _CONSTANT = 1.3, 8 * 2**20
# Of the maps that a kernel's part may have where that is more than one edge's (csrc/cpu).
_PART = 8 * 2**20
# So many maps of every group in turn fit into a part (csrc/mixed_cell_parts.cpp).
_MAPS_OF_TURN = 4
# A grid has 65,535 rows, and a map of 512 channels takes 16 of them in a group.
_MOST_GROUPS = 2**12
_WITH_MAPS = ("separable", "separable_twice", "dense", "factorized_reduce")


class Need(NamedTuple):
    """Bytes of one stage.

    Attributes:
        once: whatever the number of groups.
        before: beside, before there are groups.
        together: for every group that goes through the stage at a time.
        waiting: for every other group of the chunk.
        run: at most so many go at a time; None for all of them.
        kept: for every group whose turn it is in a call.
        edge, node: likewise, maps of convolutions of one edge, of a node; those of some edges of a
            node are there together.
        turn: so many groups take their turn together; None for all of them.
    """

    once: int
    before: int
    together: int
    waiting: int = 0
    run: int | None = None
    kept: int = 0
    edge: int = 0
    node: int = 0
    turn: int | None = None

    def of(self, groups: int) -> int:
        """For so many groups."""
        at_a_time = groups if self.run is None else min(groups, self.run)
        rest = groups - at_a_time
        turn = at_a_time if self.turn is None else min(at_a_time, self.turn)
        maps = turn * self.kept + _part(turn * self.edge, turn * self.node)
        grouped = at_a_time * self.together + maps + rest * self.waiting
        return self.once + max(self.before, grouped)

    def fitting(self, limit: int) -> int:
        """How many groups need no more than `limit`, as far as anybody asks."""
        return bisect_right(range(1, _MOST_GROUPS), limit, key=self.of)


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


def default_memory(device: torch.device) -> int:
    """A quarter of the memory that is available to this process, at most 1 GiB; for maps on a CUDA
    device half of what is free there."""
    if device.type == "cuda":
        return available_on(device) // _SHARE_OF_DEVICE
    return min(_MOST_BY_DEFAULT, available_memory() // _SHARE_OF_AVAILABLE)


def available_on(device: torch.device) -> int:
    """Bytes that torch's allocator could give out on a CUDA device: those that nobody has, and
    those that it keeps for later."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


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


def stage_needs(
    walk: Walk, images: Tensor, extra: int, first: int, *, run: int, edges: int
) -> list[Need]:
    """What evaluating every stage takes, the states that it reads and writes included.

    The counts are those of the engine's states and of the kernels' buffers.

    Args: extra, bytes that are needed at any stage; first, the stage from which on tables differ;
    run, at most so many tables change the same rows, which go together as long as something is
    shared; edges, at most so many of a cell differ: few of them are computed once where they leave
    what is shared.
    """
    n, _, height, width = images.shape
    item = images.element_size()
    net = walk.net
    on_cuda = images.device.type == "cuda"
    always = images.nbytes + extra + _CONSTANT
    channels = net._C
    # Channels and pixels of the states that a stage reads.
    stem = (net._stem_multiplier if isinstance(net, Network) else 1) * channels
    shapes = [(stem, height * width)] * (2 if isinstance(net, Network) else 1)
    needs = []
    few = edges <= MOST_EDGES_ONCE
    kept = 0  # of what is computed once, to the end
    waiting = 0
    for index, (stage, operations) in enumerate(zip(walk.stages, walk.operations, strict=True)):
        searched = isinstance(stage, (Cell, NAS201SearchCell))
        halves = (isinstance(stage, Cell) and stage.reduction) or not searched
        pixels_in = shapes[-1][1]
        pixels = pixels_in // 4 if halves else pixels_in
        channels *= 2 if halves else 1
        one_map = n * channels * pixels * item
        sums = _sums(images, channels, pixels)
        states = [n * c * p * item for c, p in shapes]
        prepares = isinstance(stage, Cell)
        prepared = [n * channels * pixels_in * item if prepares else 0 for _ in shapes]
        multiplier = stage._multiplier if isinstance(stage, Cell) else 1
        produced = (multiplier * channels, pixels)
        # The last ones of the states differ between tables.
        grouped = min(max(index - first, 0), len(shapes))
        shared = len(shapes) - grouped
        once, each, before = sum(states[:shared]), sum(states[shared:]), 0
        maps, in_turn = _Maps(0, 0, 0, 0), 0
        kept += sum(prepared[:shared]) if index >= first else 0
        each += sum(prepared[shared:]) + multiplier * one_map
        if index - first == len(shapes):
            # Copies, put together from what the runs gave before anything else is done.
            once_kept, copied = int(_MARGIN * kept), int(_MARGIN * 2 * sum(states))
            needs.append(Need(always + once_kept, 0, copied))
        if operations is None:  # its modules, one group at a time
            once += _module_maps(walk, searched) * one_map
            each += multiplier * one_map  # once more, where they are put together
        else:
            plan, drawn = operations.plan, len(operations.drawn)
            whole = _maps(plan, 0, on_cuda).of(one_map, sums)
            if index < first:
                each = 0
                before = sum(prepared) + whole + multiplier * one_map
            elif drawn or shared:
                # Sums and single maps of all operations that read what is shared.
                single = drawn + (edges * net.space.num_ops if few else 0)
                kept += (plan.nodes + single) * one_map
                before = whole
                # What leaves inputs of another size is summed by a call of its own.
                each += 2 * plan.nodes * one_map if plan.stride != 1 else 0
            if index >= first:
                maps = _maps(plan, shared if few else 0, on_cuda)
                in_turn = maps.kept * one_map + maps.summed * sums
        waiting = len(shapes) * multiplier * one_map if index <= first else waiting
        held, before, each, held_waiting, in_turn, edge, node = (
            int(_MARGIN * size)
            for size in (
                *(once + kept, before, each, waiting, in_turn),
                *(maps.edge * one_map, maps.node * one_map),
            )
        )
        needs.append(
            Need(
                *(always + held, before, each, held_waiting),
                run=run if shared else None,
                kept=in_turn,
                edge=edge,
                node=node,
                turn=None if on_cuda else max(1, _PART // (_MAPS_OF_TURN * one_map)),
            )
        )
        shapes = [*shapes[1:], produced]
    return needs


def groups_that_fit(needs: Sequence[Need], budget: int | None, device: torch.device) -> int:
    """How many groups can go through all these stages together.

    Args: budget, bytes; None for the default, which never stops what one full forward could do;
    device, of the maps.

    Raises ValueError if it is not even one.
    """
    limit = default_memory(device) if budget is None else budget
    one = max(need.of(1) for need in needs)
    if budget is not None and one > budget:
        raise ValueError(
            f"MaskedEvaluation: max_memory must hold one table, "
            f"{one / 2**20:.1f} MiB for a batch of this size, "
            f"got {budget / 2**20:.1f} MiB"
        )
    return max(1, min(need.fitting(limit) for need in needs))


class _Maps(NamedTuple):
    """Maps that are there at a time in a call.

    Attributes:
        kept: of pools and nodes.
        edge, node: of the convolutions of one edge, of one node: what one part of a call has is
            that of an edge or, in few bytes, of more. A CUDA call has no parts: both are all that
            it has at a time.
        summed: all that have sums.
    """

    kept: int
    edge: int
    node: int
    summed: int

    def of(self, one_map: int, sums: int) -> int:
        """Bytes for one group."""
        part = _part(self.edge * one_map, self.node * one_map)
        return self.kept * one_map + part + self.summed * sums


def _part(edge: int, node: int) -> int:
    """Bytes of a kernel's part. Args: edge, node, those of one edge's maps, of all of a node's."""
    return max(edge, min(node, _PART))


def _sums(images: Tensor, channels: int, pixels: int) -> int:
    """Bytes of a map's sums over images, or on CUDA over tiles (csrc/cuda/cell_product.cuh)."""
    if images.device.type != "cuda":
        return 16 * len(images) * channels  # two of every image and channel, in double precision
    columns = -(-min(channels, 64) // 4)
    tile = 4 * min(64, 256 // columns)
    return 3 * images.element_size() * channels * -(-len(images) * pixels // tile)


def _maps(plan: CellPlan, first: int, on_cuda: bool) -> _Maps:
    """At most so many, in a call of the operations that leave the state `first` or later ones."""
    ops = [
        (source, node, CELL_KINDS[kind])
        for source, node, kind in zip(plan.ops[0::5], plan.ops[1::5], plan.ops[2::5], strict=True)
        if source >= first
    ]
    pools = {(source, kind) for source, _, kind in ops if "pool" in kind}
    read = {source for source, _, _ in ops if source >= plan.inputs}
    edges = Counter((source, node) for source, node, kind in ops if kind in _WITH_MAPS)
    nodes = Counter(node for _, node, kind in ops if kind in _WITH_MAPS)
    # A node that nothing reads is summed in memory of its own.
    kept = len(pools) + len(read) + 1
    blocks = [1 + (kind == "separable_twice") for _, _, kind in ops if kind in _WITH_MAPS]
    most_of_edge, most_of_node = (max(count.values(), default=0) for count in (edges, nodes))
    if on_cuda:
        # First blocks of a node begin beside the maps of the node before it, second blocks beside
        # the first ones.
        chains = Counter(node for _, node, kind in ops if kind == "separable_twice")
        most = max((nodes[node] + max(nodes[node - 1], chains[node]) for node in nodes), default=0)
        most_of_edge = most_of_node = most
    return _Maps(kept, most_of_edge, most_of_node, len(pools) + sum(blocks))


def _module_maps(walk: Walk, searched: bool) -> int:
    """Of a stage that runs as its modules, one group at a time: at most two maps an operation."""
    space = walk.net.space
    return 2 * space.num_edges * space.num_ops if searched else 8
