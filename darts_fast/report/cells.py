# SPDX-License-Identifier: Apache-2.0
"""A picture of a genotype's cells.

Every state of a cell is a horizontal rail that begins at its input or node and ends at its last
reader. The nodes stand on a staircase: column i holds the operations that feed node i, each below
the rail it reads, all joined by the column's trunk, which runs down into the node. Nothing can
overlap, whatever the genotype, and a dot marks every place where a rail is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch

from darts_fast.report.theme import INK, MUTED, PAPER, RAIL, checked_path, new_figure, save_figure
from darts_fast.spaces import Genotype, ops_from_arch
from darts_fast.spaces.tables import NASBENCH201_EDGES

# Sizes in inches: the axes of a cell use inches as data units, so text always fits its box.
_COLUMN = 1.98
_ROW = 0.8
_BOX = (1.3, 0.29)  # width, height
_STACK = 0.35  # between boxes of one node on the same rail
_DROP = 0.34  # from a rail to the middle of a box below it
_NODE = 0.19
_LEFT = 0.98
_RIGHT = 1.44
_TOP = 0.72
_BOTTOM = 0.4
_CHARACTER = 0.075  # of the summary's font, on average

TERMINAL_FILL = "#d9f2dc"
NODE_FILL = "#fff3bf"

# Fill and edge of an operation's box, by the first part of its name that matches.
_COLOURS: tuple[tuple[str, str, str], ...] = (
    ("sep_conv", "#cfe0fb", "#2f64b5"),
    ("nor_conv_3x3", "#cfe0fb", "#2f64b5"),
    ("nor_conv_1x1", "#d3f0ec", "#1f7f74"),
    ("dil_conv", "#d3f0ec", "#1f7f74"),
    ("conv_", "#e3dafa", "#6747b3"),
    ("max_pool", "#fde3c4", "#b8690b"),
    ("avg_pool", "#fdf0c2", "#94730a"),
    ("skip_connect", "#e9ecf1", "#66728a"),
    ("noise", "#fbd5da", "#b3273b"),
    ("none", "#ffffff", "#aab3c0"),
)


@dataclass(frozen=True)
class CellPlan:
    """What is drawn: the inputs, for every node its (operation, state) pairs, the outputs."""

    title: str
    inputs: tuple[str, ...]
    nodes: tuple[tuple[tuple[str, int], ...], ...]
    node_names: tuple[str, ...]
    outputs: tuple[int, ...]
    output_name: str
    reduction: bool

    @property
    def width(self) -> float:
        return _LEFT + _COLUMN * len(self.nodes) + _RIGHT

    @property
    def rows(self) -> list[float]:
        """The height of every state's rail, lower where a node reads the one above twice."""
        rows = [-_TOP]
        for state in range(len(self.inputs) + len(self.nodes) - 1):
            reads = max(sum(source == state for _, source in node) for node in self.nodes)
            rows.append(rows[-1] - _ROW - max(reads - 1, 0) * _STACK)
        return rows

    @property
    def height(self) -> float:
        return _BOTTOM - self.rows[-1]


def draw_genotype(genotype: Genotype | str, path: str | Path, *, title: str | None = None) -> Path:
    """Draw the cells of an architecture into a file.

    A `Genotype` gives two panels, the normal and the reduction cell, where ``/2`` marks operations
    of stride 2; a NAS-Bench-201 string gives its one cell.

    Args:
        genotype: the architecture.
        path: where to write; the suffix chooses among png, pdf and svg.
        title: a line above the panels.

    Returns:
        The path written.

    Raises:
        ValueError: the suffix is none of the three, or the string is no architecture.
    """
    path = checked_path("draw_genotype", path)
    return save_figure(cell_figure(genotype, title=title), path, dpi=160)


def cell_figure(genotype: Genotype | str, *, title: str | None = None) -> Figure:
    """The picture of `draw_genotype`, not yet written."""
    return plans_figure(_plans(genotype), title)


def plans_figure(plans: Sequence[CellPlan], title: str | None = None) -> Figure:
    """Cells one below the other."""
    head = 0.45 if title else 0.0
    width = max(plan.width for plan in plans)
    height = head + sum(plan.height for plan in plans)
    figure = new_figure(width, height, arranged=False)
    figure.set_facecolor(PAPER)
    if title:
        figure.text(0.5, 1 - 0.28 / height, title, ha="center", va="center", size=13, color=INK)
    top = height - head
    for plan in plans:
        top -= plan.height
        axes = figure.add_axes((0, top / height, plan.width / width, plan.height / height))
        axes.set_xlim(0, plan.width)
        axes.set_ylim(-plan.height, 0)
        axes.set_axis_off()
        _draw_cell(axes, plan)
    return figure


def _plans(genotype: Genotype | str) -> list[CellPlan]:
    if isinstance(genotype, str):
        nodes: list[list[tuple[str, int]]] = [[], [], []]
        for op, (source, node) in zip(ops_from_arch(genotype), NASBENCH201_EDGES, strict=True):
            nodes[node - 1].append((op, source))
        return [
            CellPlan(
                title="Cell",
                inputs=("in",),
                nodes=tuple(tuple(node) for node in nodes),
                node_names=("1", "2", "3"),
                outputs=(3,),
                output_name="out",
                reduction=False,
            )
        ]
    return [
        darts_plan("Normal cell", genotype.normal, genotype.normal_concat, False),
        darts_plan("Reduction cell", genotype.reduce, genotype.reduce_concat, True),
    ]


def darts_plan(
    title: str, cell: Sequence[tuple[str, int]], concat: Sequence[int], reduction: bool
) -> CellPlan:
    """One cell of a `Genotype`."""
    nodes = tuple(tuple(cell[start : start + 2]) for start in range(0, len(cell), 2))
    return CellPlan(
        title=title,
        inputs=("$c_{k-2}$", "$c_{k-1}$"),
        nodes=nodes,
        node_names=tuple(str(index) for index in range(len(nodes))),
        outputs=tuple(concat),
        output_name="$c_k$",
        reduction=reduction,
    )


def op_colours(op: str) -> tuple[str, str]:
    """Fill and edge of an operation's box."""
    return next(
        ((fill, edge) for prefix, fill, edge in _COLOURS if op.startswith(prefix)),
        (PAPER, INK),
    )


def _draw_cell(axes: Axes, plan: CellPlan) -> None:
    first = len(plan.inputs)
    rows = plan.rows
    trunks = [_LEFT + _COLUMN * (index + 1) - 0.1 for index in range(len(plan.nodes))]
    end = plan.width - _RIGHT + 0.35
    starts = [_LEFT - 0.4] * first + trunks
    _rails(axes, plan, rows, starts, trunks, end)

    for index, node in enumerate(plan.nodes):
        boxes = _box_heights(node, rows)
        trunk = [[trunks[index]] * 2, [max(boxes), rows[first + index]]]
        # The paper-coloured line below the trunk interrupts the rails that it only crosses.
        axes.plot(*trunk, color=PAPER, lw=7, zorder=2, solid_capstyle="butt")
        axes.plot(*trunk, color=INK, lw=1.5, zorder=4, solid_capstyle="round")
        for (op, source), y in zip(node, boxes, strict=True):
            _operation(axes, op, (trunks[index], y), rows[source], plan.reduction and source < 2)
    for index, name in enumerate(plan.node_names):
        centre = (trunks[index], rows[first + index])
        axes.add_patch(Circle(centre, _NODE, facecolor=NODE_FILL, edgecolor=INK, lw=1.4, zorder=6))
        axes.text(*centre, name, ha="center", va="center", size=10.5, color=INK, zorder=7)
    for state, name in enumerate(plan.inputs):
        _pill(axes, (_LEFT - 0.43, rows[state]), name, TERMINAL_FILL)
    _output(axes, plan, rows, end)
    axes.text(0.22, -0.24, plan.title, ha="left", va="center", size=12, weight="bold", color=INK)
    axes.text(
        plan.width - 0.22, -0.24, _summary(plan), ha="right", va="center", size=8.5, color=MUTED
    )


def _summary(plan: CellPlan) -> str:
    """How often each operation occurs, most frequent first, as far as the line beside the title."""
    counts = Counter(op for node in plan.nodes for op, _ in node).most_common()
    words = [f"{count} \u00d7 {op}" for op, count in counts]
    room = int((plan.width - 2.2) / _CHARACTER)
    if len("   ".join(words)) > room:
        while len("   ".join([*words, "\u2026"])) > room:
            words.pop()
        words.append("\u2026")
    return "   ".join(words)


def _box_heights(node: Sequence[tuple[str, int]], rows: Sequence[float]) -> list[float]:
    """The middle of every box: below the rail it reads, one below the other on the same rail."""
    seen: Counter[int] = Counter()
    heights = []
    for _, source in node:
        heights.append(rows[source] - _DROP - seen[source] * _STACK)
        seen[source] += 1
    return heights


def _rails(
    axes: Axes,
    plan: CellPlan,
    rows: Sequence[float],
    starts: Sequence[float],
    trunks: Sequence[float],
    end: float,
) -> None:
    for state, y in enumerate(rows):
        readers = [
            _tap(trunks[index])
            for index, node in enumerate(plan.nodes)
            if any(source == state for _, source in node)
        ]
        if state in plan.outputs:
            readers.append(end)
        if readers:
            axes.plot([starts[state], max(readers)], [y, y], color=RAIL, lw=1.6, zorder=1)


def _tap(trunk: float) -> float:
    """Where the operations of a trunk read their rails."""
    return trunk - _BOX[0] - 0.3


def _operation(axes: Axes, op: str, trunk: tuple[float, float], rail: float, strided: bool) -> None:
    fill, edge = op_colours(op)
    x, y = trunk
    tap = _tap(x)
    left = tap + 0.14
    axes.plot([tap, tap, left], [rail, y, y], color=edge, lw=1.5, zorder=3)
    axes.plot([left + _BOX[0], x], [y, y], color=edge, lw=1.5, zorder=3)
    axes.add_patch(Circle((tap, rail), 0.045, facecolor=edge, edgecolor=edge, zorder=4))
    axes.add_patch(
        FancyBboxPatch(
            (left, y - _BOX[1] / 2),
            *_BOX,
            boxstyle="round,pad=0,rounding_size=0.09",
            facecolor=fill,
            edgecolor=edge,
            lw=1.2,
            ls="--" if op == "none" else "-",
            zorder=5,
        )
    )
    axes.text(
        left + _BOX[0] / 2,
        y - 0.005,
        op + (" /2" if strided else ""),
        ha="center",
        va="center",
        size=8,
        color=INK,
        zorder=6,
    )


def _pill(axes: Axes, centre: tuple[float, float], text: str, fill: str) -> None:
    width, height = 0.62, 0.34
    axes.add_patch(
        FancyBboxPatch(
            (centre[0] - width / 2, centre[1] - height / 2),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.16",
            facecolor=fill,
            edgecolor=INK,
            lw=1.3,
            zorder=6,
        )
    )
    axes.text(*centre, text, ha="center", va="center", size=10.5, color=INK, zorder=7)


def _output(axes: Axes, plan: CellPlan, rows: Sequence[float], end: float) -> None:
    joined = [rows[state] for state in plan.outputs]
    middle = (max(joined) + min(joined)) / 2
    if len(joined) > 1:
        axes.plot([end] * 2, [max(joined), min(joined)], color=INK, lw=4, zorder=5)
    colour = INK if len(joined) > 1 else RAIL
    axes.plot([end, end + 0.2], [middle] * 2, color=colour, lw=1.6, zorder=1)
    _pill(axes, (end + 0.5, middle), plan.output_name, TERMINAL_FILL)
