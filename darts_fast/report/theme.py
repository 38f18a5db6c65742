# SPDX-License-Identifier: Apache-2.0
"""Colours, type and file formats that every picture shares.

Pictures are drawn in the colours of a light page. In an inline SVG each colour becomes a CSS
variable with a value for dark pages too, so one drawing serves both. The series colours are those
of Okabe and Ito (2002), which stay apart in every common form of colour blindness; line styles and
markers say the same again for print without colour.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = [
    "DASHES",
    "HEAT",
    "INK",
    "MARKERS",
    "MUTED",
    "PAPER",
    "PAPER_WIDTH",
    "RAIL",
    "SERIES",
    "SUFFIXES",
    "adapted_svg",
    "checked_path",
    "colour_variables",
    "inline_svg",
    "label_axes",
    "new_figure",
    "op_style",
    "save_figure",
    "series_styles",
    "themed",
]

INK = "#27303f"
MUTED = "#5f6b80"
RAIL = "#8b97a8"
PAPER = "#ffffff"
PAPER_WIDTH = 6.75  # inches, both columns of a conference paper
SUFFIXES = (".png", ".pdf", ".svg")
_DPI = 300

_BLUE, _ORANGE, _GREEN, _RED = "#0072b2", "#e69f00", "#009e73", "#d55e00"
_PURPLE, _SKY, _OLIVE = "#cc79a7", "#56b4e9", "#7a7a00"
SERIES = (_BLUE, _RED, _GREEN, _PURPLE, _ORANGE, _SKY)
MARKERS = "osD^vP"
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (5, 1.4, 1.2, 1.4)))
HEAT = ("#f3f6fb", "#dce8f6", "#bcd5ee", "#93bbe2", "#6298cf", "#3a73b5", "#1d4f8c")

# What a colour of a light page is on a dark one.
_DARK = {
    INK: "#e4e9f1",
    MUTED: "#a3aec0",
    RAIL: "#76839a",
    PAPER: "#12161d",
    _BLUE: "#4fa3e3",
    _ORANGE: "#f0b429",
    _GREEN: "#2fc79b",
    _RED: "#ff8a50",
    _PURPLE: "#e5a0c8",
    _SKY: "#a5dcff",
    _OLIVE: "#bdbd45",
    **dict(
        zip(
            HEAT,
            ("#1b222c", "#20344b", "#284868", "#335d88", "#3e72a6", "#84b3df", "#bbdbf8"),
            strict=True,
        )
    ),
    # Fills and edges of cells.
    "#d9f2dc": "#1d3d28",
    "#fff3bf": "#473d12",
    "#cfe0fb": "#1e3557",
    "#2f64b5": "#7fb0f2",
    "#d3f0ec": "#173f3a",
    "#1f7f74": "#5cc9bb",
    "#e3dafa": "#352a57",
    "#6747b3": "#b29cf0",
    "#fde3c4": "#4b3113",
    "#b8690b": "#f0a94f",
    "#fdf0c2": "#453a10",
    "#94730a": "#e0be4f",
    "#e9ecf1": "#2b323d",
    "#66728a": "#a3aec1",
    "#fbd5da": "#501f26",
    "#b3273b": "#f28492",
    "#aab3c0": "#6b7688",
}

# Colour and dash of an operation's line, by the first part of its name that matches.
_OPERATIONS: tuple[tuple[str, str, Any], ...] = (
    ("none", "#aab3c0", DASHES[2]),
    ("skip_connect", _RED, DASHES[0]),
    ("max_pool", _ORANGE, DASHES[1]),
    ("avg_pool", _PURPLE, DASHES[1]),
    ("sep_conv_3x3", _BLUE, DASHES[0]),
    ("sep_conv", _SKY, DASHES[3]),
    ("dil_conv_3x3", _GREEN, DASHES[0]),
    ("dil_conv", _OLIVE, DASHES[3]),
    ("nor_conv_1x1", _SKY, DASHES[3]),
    ("nor_conv", _BLUE, DASHES[0]),
    ("noise", "#b3273b", DASHES[2]),
)

_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.edgecolor": RAIL,
    "axes.labelcolor": INK,
    "axes.labelsize": 8,
    "axes.titlesize": 8.5,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "grid.color": RAIL,
    "legend.fontsize": 7.5,
    "legend.labelcolor": INK,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "lines.linewidth": 1.4,
    "pdf.fonttype": 42,  # fonts embedded as TrueType: publishers refuse type 3
    "svg.fonttype": "path",
    "svg.hashsalt": "darts_fast",
}

Drawing = TypeVar("Drawing", bound=Callable[..., Any])


def themed(draw: Drawing) -> Drawing:
    """Run a function under the settings of this module."""

    @wraps(draw)
    def inside(*args: Any, **kwargs: Any) -> Any:
        with matplotlib.rc_context(_RC):
            return draw(*args, **kwargs)

    return cast(Drawing, inside)


def op_style(op: str) -> tuple[str, Any]:
    """Colour and dash of an operation's line; ink for one that is not known."""
    return next(
        ((colour, dash) for prefix, colour, dash in _OPERATIONS if op.startswith(prefix)),
        (INK, DASHES[0]),
    )


def new_figure(width: float, height: float, *, arranged: bool = True) -> Figure:
    """An empty figure, width and height in inches; `arranged` lets matplotlib place its parts."""
    figure = Figure(figsize=(width, height), layout="constrained" if arranged else None)
    FigureCanvasAgg(figure)
    return figure


def label_axes(axes: Axes, title: str, x: str, y: str) -> None:
    """Title, axis labels, a faint grid, and no frame at the top and right."""
    axes.set_title(title, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3, lw=0.5)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def checked_path(name: str, path: str | Path) -> Path:
    """The path; ValueError in the name of the function unless it ends in .png, .pdf or .svg."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{name}: the file name must end in .png, .pdf or .svg, got {path.name!r}")
    return path


@themed
def save_figure(figure: Figure, path: Path, *, dpi: int = _DPI) -> Path:
    """Write a figure for a paper: fonts are in the file, and the same figure gives the same bytes.

    Args:
        path: ends in .png, .pdf or .svg.
        dpi: of a .png.
    """
    undated: dict[str, dict[str, Any]] = {
        ".png": {},
        ".pdf": {"CreationDate": None},
        ".svg": {"Date": None},
    }
    figure.savefig(path, dpi=dpi, facecolor=figure.get_facecolor(), metadata=undated[path.suffix])
    return path


@themed
def inline_svg(figure: Figure, name: str, label: str) -> str:
    """A figure as an ``<svg>`` element for a page: real text, colours as CSS variables.

    Args:
        name: begins every id in it, so that pictures on one page do not meet.
        label: read out in place of the picture.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return adapted_svg(buffer.getvalue(), name, label)


def adapted_svg(text: str, name: str, label: str) -> str:
    """The ``<svg>`` element of a file, made fit for a page as `inline_svg` says.

    Raises:
        ValueError: there is none.
    """
    found = re.search(r"<svg\b([^>]*)>(.*)</svg>", text, flags=re.DOTALL)
    if found is None:
        raise ValueError(f"picture {name}: must be an SVG file, got {text[:40]!r}")
    attributes, body = found.groups()
    body = re.sub(r"<(metadata|title|style)\b.*?</\1>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", body)
    body = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{name}-\1"', body)
    body = re.sub(r'\b(fill|stroke)="(#[0-9a-fA-F]{6})"', r'style="\1: \2"', body)
    body = re.sub(r'style="([^"]*)" style="([^"]*)"', r'style="\1; \2"', body)
    body = re.sub(r"#[0-9a-fA-F]{6}\b", lambda colour: _variable(colour[0].lower()), body)
    box = re.search(r'viewBox="([^"]+)"', attributes)
    size = [float(part) for part in box[1].split()[2:]] if box else [0.0, 0.0]
    return (
        f'<svg role="img" aria-label="{html.escape(label)}" viewBox="0 0 {size[0]:g} {size[1]:g}" '
        f'width="{size[0]:g}" height="{size[1]:g}" xmlns="http://www.w3.org/2000/svg">'
        f"{body.strip()}</svg>"
    )


def colour_variables(dark: bool) -> str:
    """The CSS declarations of the colours of all pictures, for light or for dark pages."""
    return " ".join(f"--c{light[1:]}: {_DARK[light] if dark else light};" for light in _DARK)


def _variable(colour: str) -> str:
    return f"var(--c{colour[1:]}, {colour})" if colour in _DARK else colour


def series_styles(count: int) -> Sequence[tuple[str, str, Any]]:
    """Colour, marker and dash of so many series."""
    return [
        (SERIES[i % len(SERIES)], MARKERS[i % len(MARKERS)], DASHES[i // len(SERIES) % len(DASHES)])
        for i in range(count)
    ]
