# SPDX-License-Identifier: Apache-2.0
"""Cells drawn by Graphviz, where its program ``dot`` is installed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from darts_fast.report.cells import NODE_FILL, TERMINAL_FILL, op_colours
from darts_fast.report.theme import INK, MUTED, checked_path
from darts_fast.spaces import Genotype, ops_from_arch
from darts_fast.spaces.tables import NASBENCH201_EDGES

__all__ = ["dot_source", "draw_with_graphviz", "graphviz_found"]

_Wire = tuple[str, str, str]  # from, to, operation


def graphviz_found() -> bool:
    """Whether the program ``dot`` can be run."""
    return shutil.which("dot") is not None


def draw_with_graphviz(genotype: Genotype | str, path: str | Path) -> Path:
    """Draw the cells of an architecture as a graph of states, an edge for each operation.

    Args:
        genotype: the architecture.
        path: where to write; ends in .png, .pdf or .svg.

    Returns:
        The path written.

    Raises:
        ValueError: another suffix, or the string is no architecture.
        OSError: ``dot`` is not installed, or fails; the message is its own.
    """
    path = checked_path("draw_with_graphviz", path)
    kind = {".png": ["-Tpng", "-Gdpi=200"], ".pdf": ["-Tpdf"], ".svg": ["-Tsvg"]}[path.suffix]
    done = subprocess.run(
        ["dot", *kind, "-o", str(path)],
        input=dot_source(genotype),
        text=True,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise OSError(f"dot: {' '.join(done.stderr.split())}")
    return path


def dot_source(genotype: Genotype | str) -> str:
    """The graph in Graphviz' language."""
    if isinstance(genotype, str):
        names = ("in", "1", "2", "out")
        pairs = zip(ops_from_arch(genotype), NASBENCH201_EDGES, strict=True)
        wires = [(names[source], names[node], op) for op, (source, node) in pairs]
        return _graph([_cluster("cell", "Cell", ("in", "out"), wires)])
    return _graph(
        [
            # dot stacks clusters from the bottom up.
            _darts_cluster("reduce", "Reduction cell", genotype.reduce, genotype.reduce_concat),
            _darts_cluster("normal", "Normal cell", genotype.normal, genotype.normal_concat),
        ]
    )


def _darts_cluster(
    name: str, title: str, cell: Sequence[tuple[str, int]], concat: Sequence[int]
) -> str:
    inputs = ("c_{k-2}", "c_{k-1}")
    names = [*inputs, *(str(node) for node in range(len(cell) // 2))]
    halved = " /2" if name == "reduce" else ""
    wires = [
        (names[source], names[index // 2 + 2], op + (halved if source < 2 else ""))
        for index, (op, source) in enumerate(cell)
    ]
    wires += [(names[state], "c_{k}", "") for state in concat]
    return _cluster(name, title, (*inputs, "c_{k}"), wires)


def _cluster(name: str, title: str, terminals: Sequence[str], wires: Sequence[_Wire]) -> str:
    states = dict.fromkeys([*terminals[:-1], *(to for _, to, _ in wires), terminals[-1]])
    lines = [f"subgraph cluster_{name} {{", f"label={_quoted(title)}"]
    for state in states:
        end = state in terminals
        fill, shape = (TERMINAL_FILL, "box") if end else (NODE_FILL, "circle")
        written = re.sub(r"_\{(.*)\}", r"<sub>\1</sub>", state)
        lines.append(
            f"{_quoted(name + state)} [label=<{written}> shape={shape} fillcolor={_quoted(fill)}]"
        )
    for source, to, op in wires:
        wire = f"{_quoted(name + source)} -> {_quoted(name + to)}"
        colour = op_colours(op)[1] if op else MUTED
        label = f" label={_quoted(f' {op} ')}" if op else ""
        style = " style=dashed" if op == "none" else ""
        lines.append(f"{wire} [color={_quoted(colour)}{label}{style}]")
    return "\n".join([*lines, "}"])


def _graph(clusters: Sequence[str]) -> str:
    ink, font = f"color={_quoted(INK)}", 'fontname="DejaVu Sans"'
    return "\n".join(
        [
            "digraph cells {",
            f'graph [rankdir=LR bgcolor="transparent" {font} fontsize=13 font{ink} pencolor=none',
            "nodesep=0.22 ranksep=0.4 labeljust=l]",
            f'node [style="filled,rounded" {font} fontsize=11 font{ink} {ink}',
            "height=0.32 width=0.32 margin=0.06]",
            f"edge [{font} fontsize=9 font{ink} arrowsize=0.6]",
            *clusters,
            "}",
            "",
        ]
    )


def _quoted(text: str) -> str:
    return json.dumps(text)
