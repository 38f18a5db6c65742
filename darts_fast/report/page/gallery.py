# SPDX-License-Identifier: Apache-2.0
"""The pictures of a report: each one goes into files for papers and into the page."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from markupsafe import Markup
from matplotlib.figure import Figure

from darts_fast.report.cells import cell_figure
from darts_fast.report.graphviz import draw_with_graphviz
from darts_fast.report.theme import adapted_svg, inline_svg, save_figure
from darts_fast.spaces import Genotype

_LEAST = 1.15  # of 8 point text in a figure
_LEAST_OF_CELLS = 0.88  # cells have larger text

__all__ = ["Gallery", "Picture", "file_name"]


@dataclass(frozen=True)
class Picture:
    """A picture for the page.

    Attributes:
        svg: the element.
        title: read out in its place.
        caption: below it.
        width: its own, in CSS pixels at scale 1.
        least: the smallest width at which its text can be read; on narrower screens it scrolls.
    """

    svg: Markup
    title: str
    caption: str
    width: float
    least: float


def file_name(text: str) -> str:
    """The text without what has no place in a file's name."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "run"


class Gallery:
    """Writes pictures and gives them back for the page.

    Args:
        folder: where the files go; it must exist.
        formats: among ``png``, ``svg`` and ``pdf``.
        graphviz: whether cells are drawn by Graphviz.
    """

    def __init__(self, folder: Path, formats: Sequence[str], *, graphviz: bool) -> None:
        self.folder = folder
        self.formats = formats
        self.graphviz = graphviz
        self.written: list[Path] = []
        self._count = 0

    def add(self, figure: Figure | None, name: str, title: str, caption: str) -> list[Picture]:
        """One picture, or none where there is no figure."""
        if figure is None:
            return []
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # it is laid out: not again for every file
        for path in self._paths(name):
            self.written.append(save_figure(figure, path))
        return [_picture(inline_svg(figure, self._prefix(), title), title, caption, _LEAST)]

    def add_cells(
        self, genotype: Genotype | str, name: str, title: str, caption: str
    ) -> list[Picture]:
        """The cells of an architecture."""
        if not self.graphviz:
            (picture,) = self.add(cell_figure(genotype), name, title, caption)
            return [replace(picture, least=_LEAST_OF_CELLS * picture.width)]
        for path in self._paths(name):
            self.written.append(draw_with_graphviz(genotype, path))
        with tempfile.TemporaryDirectory() as scratch:
            drawn = draw_with_graphviz(genotype, Path(scratch) / "cells.svg")
            text = drawn.read_text(encoding="utf-8")
        svg = adapted_svg(text, self._prefix(), title)
        return [_picture(svg, title, caption, _LEAST_OF_CELLS)]

    def _paths(self, name: str) -> list[Path]:
        return [self.folder / f"{file_name(name)}.{suffix}" for suffix in self.formats]

    def _prefix(self) -> str:
        self._count += 1
        return f"p{self._count}"


def _picture(svg: str, title: str, caption: str, scale: float) -> Picture:
    found = re.search(r'viewBox="0 0 ([\d.]+) ', svg)
    width = float(found[1]) if found else 0.0
    return Picture(Markup(svg), title, caption, width, scale * width)
