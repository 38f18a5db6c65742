# SPDX-License-Identifier: Apache-2.0
"""The picture of a genotype's cells."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle

from darts_fast.report import draw_genotype
from darts_fast.spaces import (
    DARTS_V2,
    Genotype,
    arch_from_index,
    get_space,
    make_genotype,
    random_genotype,
)

# A node that reads one state twice, a node outside the output, cells of different sizes.
CORNERS = make_genotype(
    {
        "normal": [("avg_pool_3x3", 0), ("avg_pool_3x3", 0), ("conv_7x1_1x7", 2), ("none", 2)],
        "normal_concat": [2],
        "reduce": [("noise", 0), ("sep_conv_5x5_skip", 1)],
        "reduce_concat": [2],
    }
)

# Eight different operations: more than fit beside the title.
VARIED = make_genotype(
    {
        "normal": [
            (op, index % 2)
            for index, op in enumerate(
                [*get_space("s5").primitives["normal"][0], "sep_conv_5x5_skip"]
            )
        ],
        "normal_concat": range(2, 6),
        "reduce": CORNERS.reduce,
        "reduce_concat": [2],
    }
)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn, which are then not written."""
    made: list[Figure] = []

    def remember(self: Figure, path: Path, **options: object) -> None:
        made.append(self)

    monkeypatch.setattr(Figure, "savefig", remember)
    return made


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_writes_the_three_formats(tmp_path: Path, suffix: str) -> None:
    path = draw_genotype(DARTS_V2, tmp_path / f"cells.{suffix}", title="DARTS_V2")
    assert path == tmp_path / f"cells.{suffix}"
    start = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[suffix]
    assert path.read_bytes().startswith(start)
    if suffix == "png":
        width, height = struct.unpack(">II", path.read_bytes()[16:24])
        assert min(width, height) > 1000


def test_shows_every_operation_once_and_the_strides(tmp_path: Path, figures: list[Figure]) -> None:
    draw_genotype(DARTS_V2, str(tmp_path / "cells.png"), title="found")
    normal, reduce = figures[0].axes
    shown = [text.get_text() for text in normal.texts]
    assert sorted(t for t in shown if t in dict(DARTS_V2.normal)) == sorted(
        op for op, _ in DARTS_V2.normal
    )
    strided = [text.get_text() for text in reduce.texts if text.get_text().endswith(" /2")]
    assert strided == ["max_pool_3x3 /2"] * 5
    assert "5 \u00d7 sep_conv_3x3   2 \u00d7 skip_connect   1 \u00d7 dil_conv_3x3" in shown
    assert {"Normal cell", "$c_{k-2}$", "$c_{k-1}$", "0", "1", "2", "3", "$c_k$"} <= set(shown)
    assert [text.get_text() for text in figures[0].texts] == ["found"]


def test_counts_that_do_not_fit_are_left_out(tmp_path: Path, figures: list[Figure]) -> None:
    draw_genotype(VARIED, tmp_path / "cells.png")
    (summary,) = (text for text in texts(figures[0]) if text.startswith("1 \u00d7 max_pool"))
    assert summary.endswith("   \u2026")
    assert summary.count("\u00d7") >= 5


def test_shows_a_nasbench201_cell(tmp_path: Path, figures: list[Figure]) -> None:
    draw_genotype(arch_from_index(1462), tmp_path / "cell.png")
    assert texts(figures[0]).count("nor_conv_3x3") == 6
    assert {"in", "1", "2", "3", "out"} <= set(texts(figures[0]))


def genotypes() -> list[Genotype | str]:
    drawn = [
        random_genotype(get_space(name), torch.Generator().manual_seed(seed))
        for name in ("darts", "s4", "nasbench201")
        for seed in range(2)
    ]
    return [CORNERS, VARIED, DARTS_V2, *drawn]


@pytest.mark.parametrize("genotype", genotypes())
def test_nothing_overlaps_and_nothing_is_cut_off(
    tmp_path: Path, figures: list[Figure], genotype: Genotype | str
) -> None:
    draw_genotype(genotype, tmp_path / "cells.png", title="a title")
    figure = figures[0]
    renderer = figure.canvas.get_renderer()
    labels = [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]
    boxes = [text.get_window_extent(renderer) for text in labels]
    for index, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1
        for other in boxes[:index]:
            assert not box.overlaps(other)
    for axes in figure.axes:
        frames = [
            patch.get_window_extent(renderer)
            for patch in axes.patches
            if patch.get_window_extent(renderer).width > 20
        ]
        for index, frame in enumerate(frames):
            assert not any(frame.overlaps(other) for other in frames[:index])
        assert len(frames) >= 4


@pytest.mark.parametrize("genotype", genotypes())
def test_text_fits_its_box(tmp_path: Path, figures: list[Figure], genotype: Genotype | str) -> None:
    draw_genotype(genotype, tmp_path / "cells.png")
    figure = figures[0]
    renderer = figure.canvas.get_renderer()
    fitted = 0
    for axes in figure.axes:
        frames = [patch.get_window_extent(renderer) for patch in axes.patches]
        for text in axes.texts:
            box = text.get_window_extent(renderer)
            around = [f for f in frames if f.contains(*box.get_points().mean(0))]
            if around:
                fitted += 1
                assert any(f.x0 <= box.x0 and box.x1 <= f.x1 for f in around), text.get_text()
    assert fitted >= 10


def test_the_same_genotype_gives_the_same_picture(tmp_path: Path) -> None:
    first = draw_genotype(DARTS_V2, tmp_path / "a.png").read_bytes()
    assert draw_genotype(DARTS_V2, tmp_path / "b.png").read_bytes() == first
    assert draw_genotype(CORNERS, tmp_path / "c.png").read_bytes() != first


def is_rail(line: Line2D) -> bool:
    x, heights = line.get_xdata(), line.get_ydata()
    return bool(len(x) == 2 and x[1] - x[0] > 0.3 and heights[0] == heights[1])


@pytest.mark.parametrize("genotype", [CORNERS, DARTS_V2])
def test_rails_join_states_operations_and_output(
    tmp_path: Path, figures: list[Figure], genotype: Genotype
) -> None:
    """The dots lie on rails: horizontal lines that begin at the state and reach as far."""
    draw_genotype(genotype, tmp_path / "cells.png")
    drawn = (
        (genotype.normal, genotype.normal_concat),
        (genotype.reduce, genotype.reduce_concat),
    )
    for axes, (cell, concat) in zip(figures[0].axes, drawn, strict=True):
        at = {text.get_text(): text.get_position()[1] for text in axes.texts}
        rows = [at[name] for name in ("$c_{k-2}$", "$c_{k-1}$", *"0123"[: len(cell) // 2])]
        dots = [
            patch.center
            for patch in axes.patches
            if isinstance(patch, Circle) and patch.radius < 0.1
        ]
        assert sorted(y for _, y in dots) == sorted(rows[state] for _, state in cell)
        rails = {line.get_ydata()[0]: line.get_xdata() for line in axes.lines if is_rail(line)}
        for x, y in dots:
            assert min(rails[y]) <= x <= max(rails[y])
        (output,) = (text for text in axes.texts if text.get_text() == "$c_k$")
        reaching = {y for y, x in rails.items() if output.get_position()[0] - max(x) < 0.6}
        assert reaching == {rows[state] for state in concat}


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.png, \.pdf or \.svg, got 'cells\.jpg'"):
        draw_genotype(DARTS_V2, tmp_path / "cells.jpg")
    with pytest.raises(ValueError, match="an architecture must read"):
        draw_genotype("DARTS_V2", tmp_path / "cells.png")
    with pytest.raises(FileNotFoundError):
        draw_genotype(DARTS_V2, tmp_path / "missing" / "cells.png")
