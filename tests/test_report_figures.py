# SPDX-License-Identifier: Apache-2.0
"""The figures of a report show what the run recorded, and nothing in them is cut off."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from test_report_page import EPOCHS, events_of_a_search, finished, write_run

from darts_fast.report.decisions import decision_rows
from darts_fast.report.figures import (
    alpha_curves,
    edge_scores,
    learning_curves,
    removal_heat_map,
    score_meaning,
    skip_curves,
    timing_bars,
)
from darts_fast.report.run import Run
from darts_fast.report.theme import (
    HEAT,
    SERIES,
    adapted_svg,
    colour_variables,
    op_style,
    save_figure,
)
from darts_fast.spaces import DARTS_OPERATIONS, DARTS_V2, SPACES, skip_connections


def run_of(
    folder: Path, space: str, events: list[dict[str, Any]] | None = None, **more: Any
) -> Run:
    return Run.read(write_run(folder / "run", space, events=events, **more))


def assert_inside(figure: Figure) -> None:
    """Everything that is drawn lies in the figure."""
    figure.draw_without_rendering()
    box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert 0.5 * width < box.x1 <= width + 0.01
    assert 0.5 * height < box.y1 <= height + 0.01
    assert min(box.x0, box.y0) >= -0.01


@pytest.mark.parametrize("space", ["nasbench201", "s1", "darts"])
def test_a_heat_map_shows_scores_errors_and_what_was_kept(tmp_path: Path, space: str) -> None:
    run = run_of(tmp_path, space)
    cell_type = SPACES[space].cell_types[-1]
    figure = removal_heat_map(run, cell_type)
    assert figure is not None
    assert_inside(figure)
    axes = figure.axes[0]
    at = {(round(x, 1), math.floor(y)): [] for x, y in (text.get_position() for text in axes.texts)}
    for text in axes.texts:
        x, y = text.get_position()
        at[round(x, 1), math.floor(y)].append(text.get_text())
    frames = {
        (round(patch.get_x() - 0.03), round(patch.get_y() - 0.06))
        for patch in axes.patches
        if isinstance(patch, Rectangle)
    }
    decisions = [one for one in run.decisions if one.cell_type == cell_type]
    assert len(decisions) == SPACES[space].num_edges
    for decision in decisions:
        for op, loss in enumerate(decision.loss[0]):
            assert at[op + 0.5, decision.place] == [f"{loss:.3f}", "\u00b10.125"]
        assert (decision.chosen[0], decision.place) in frames
    assert len(frames) == len(decisions)


def test_scores_say_what_they_are(tmp_path: Path) -> None:
    said = set()
    for number, (method, criterion) in enumerate(
        [("perturbation", "loss"), ("one_shot", "acc"), ("discretization", "acc"), ("strength", "")]
    ):
        run = run_of(tmp_path / str(number), "nasbench201", select=method, proj_crit=criterion)
        said.add(score_meaning(run, "cell"))
    assert said == {
        ("loss without the operation", "nats"),
        ("accuracy without the operation", "%"),
        ("accuracy with only the operation, after training", "%"),
        ("strength of the operation", "nats"),
    }


@pytest.mark.parametrize(
    ("select", "criterion", "values", "harm"),
    [
        ("perturbation", "loss", [1.0, 3.0, 2.0, 1.5, 1.0], [0, 2, 1, 0.5, 0]),
        ("perturbation", "acc", [50.0, 30.0, 40.0, 45.0, 50.0], [0, 20, 10, 5, 0]),
        ("discretization", "acc", [50.0, 30.0, 40.0, 45.0, 50.0], [20, 0, 10, 15, 20]),
        ("discretization", "loss", [1.0, 3.0, 2.0, 1.5, 1.0], [2, 0, 1, 1.5, 2]),
        ("perturbation", "loss", [1.0, math.inf, 2.0, 1.5, 1.0], [0, math.inf, 1, 0.5, 0]),
    ],
)
def test_worth_is_counted_from_the_least_of_an_edge(
    tmp_path: Path, select: str, criterion: str, values: list[float], harm: list[float]
) -> None:
    events = events_of_a_search("nasbench201", decided=1)
    events[-1]["loss" if criterion == "loss" else "accuracy"] = [values]
    run = run_of(tmp_path, "nasbench201", events, select=select, proj_crit=criterion)
    (row,) = edge_scores(run, "cell")
    assert row.values == values
    assert row.harm == harm
    figure = removal_heat_map(run, "cell")
    assert figure is not None
    assert_inside(figure)


def test_strengths_have_no_errors(tmp_path: Path) -> None:
    events = events_of_a_search("nasbench201", decided=1)
    events[-1].update(strengths=[[0.5, 0.25, 0.125, 0.0, 1.0]], loss=[], accuracy=[], chosen=[4])
    run = run_of(tmp_path, "nasbench201", events, select="strength")
    figure = removal_heat_map(run, "cell")
    assert figure is not None
    assert [text.get_text() for text in figure.axes[0].texts] == [
        *("0.500", "0.250", "0.125", "0.000", "1.000")
    ]
    (row,) = decision_rows(run)
    assert (row.score, row.runner_up) == ("1.000 nats", "none 0.500 nats")


def test_decisions_of_nodes_say_what_was_let_go(tmp_path: Path) -> None:
    events = events_of_a_search("s5", decided=1)
    node = {**events[-1], "kind": "edge", "place": 4, "chosen": [5, 8], "index": 1}
    node.update(candidates=[[5, 6, 7, 8], [5, 7, 8]], loss=[[3.0, 1.0, 2.0, 4.0], [3.0, 2.5, 4.0]])
    node.update(loss_stderr=[[0.5] * 4, [0.25] * 3], outcomes=["full", "decided"])
    run = run_of(tmp_path, "s5", [*events, node])
    row = decision_rows(run)[1]
    assert row.place == "normal node 4"
    assert row.chosen == "0\u21924, 3\u21924"
    assert row.runner_up == ("1\u21924 1.000 \u00b1 0.500 nats; 2\u21924 2.500 \u00b1 0.250 nats")
    assert row.outcome == "full, decided"


@pytest.mark.parametrize("space", ["nasbench201", "s1", "s5"])
def test_weights_are_the_softmax_of_the_alphas(tmp_path: Path, space: str) -> None:
    run = run_of(tmp_path, space)
    cell_type = SPACES[space].cell_types[0]
    figure = alpha_curves(run, cell_type)
    assert figure is not None
    assert_inside(figure)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    titles = ["{}\u2192{}".format(*edge) for edge in SPACES[space].edges]
    assert [axes.get_title(loc="left") for axes in shown] == titles
    tables = [e["alphas"][cell_type] for e in run.events if e["event"] == "epoch"]
    expected = torch.tensor(tables).softmax(-1)
    for edge, axes in enumerate(shown):
        for op, line in enumerate(axes.lines):
            assert list(line.get_xdata()) == list(range(1, EPOCHS + 1))
            np.testing.assert_allclose(line.get_ydata(), expected[:, edge, op])


def test_curves_show_every_series(tmp_path: Path) -> None:
    run = run_of(tmp_path, "nasbench201", results=finished())
    series = {"one": run.epochs("search"), "none": [], "two": run.epochs("search")[:1]}
    figure = learning_curves(series, x="epoch", held_out="validation images")
    assert figure is not None
    assert_inside(figure)
    left, right = figure.axes
    assert left.get_ylabel() == "accuracy, %"
    assert right.get_ylabel() == "loss, nats"
    assert len(left.lines) == 4
    assert list(right.lines[0].get_ydata()) == [2.0, 1.5, 1.0]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["one", "two", "training images", "validation images"]
    assert learning_curves({"none": []}, x="epoch", held_out="") is None
    alone = [{**event, "valid_acc": None, "valid_loss": None} for event in run.epochs("search")]
    figure = learning_curves({"one": alone}, x="epoch", held_out="validation images")
    assert figure is not None
    assert figure.axes[0].get_ylabel() == "training accuracy, %"
    assert len(figure.axes[0].lines) == 1


def test_skips_and_times(tmp_path: Path) -> None:
    run = run_of(tmp_path, "nasbench201", results=finished())
    figure = skip_curves([run])
    assert figure is not None
    assert_inside(figure)
    line, star = figure.axes[0].lines
    text = run.events[1]["genotype"]
    assert list(line.get_ydata()) == [skip_connections(text)] * EPOCHS
    assert list(star.get_ydata()) == [0]
    bars = timing_bars([run])
    assert bars is not None
    assert_inside(bars)
    assert [patch.get_width() for patch in bars.axes[0].patches] == [60.0, 20.0]
    assert bars.axes[0].get_xlabel() == "wall time, s"
    assert skip_connections(DARTS_V2) == 2 + 3
    assert skip_curves([run_of(tmp_path / "new", "s5", [])]) is None


# theme


def test_the_same_figure_gives_the_same_file(tmp_path: Path) -> None:
    run = run_of(tmp_path, "nasbench201", results=finished())
    for suffix in ("png", "svg", "pdf"):
        files = []
        for number in (1, 2):
            figure = timing_bars([run])
            assert figure is not None
            files.append(save_figure(figure, tmp_path / f"{number}.{suffix}").read_bytes())
        assert files[0] == files[1]


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    bright, dim = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_text_and_lines_can_be_told_from_the_page(dark: bool) -> None:
    pairs = (part.strip().split(": ") for part in colour_variables(dark).split(";") if part.strip())
    shown = {f"#{name.removeprefix('--c')}": value for name, value in pairs}
    paper, ink = shown["#ffffff"], shown["#27303f"]
    assert contrast(ink, paper) > 10
    for colour in SERIES:
        assert contrast(shown[colour], paper) > 2.2
    for colour in HEAT[:5]:
        assert contrast(ink, shown[colour]) > 4
    for colour in HEAT[5:]:
        assert contrast(paper, shown[colour]) > 4
    steps = [luminance(shown[colour]) for colour in HEAT]
    assert steps == sorted(steps, reverse=not dark)


def test_operations_that_may_share_an_edge_look_different() -> None:
    for space in SPACES.values():
        for lists in space.primitives.values():
            for names in lists:
                styles = [op_style(name) for name in names]
                assert len(set(map(str, styles))) == len(names), names
    assert all(op_style(name)[0] for name in DARTS_OPERATIONS)


def test_an_svg_file_is_made_fit_for_a_page() -> None:
    text = (
        '<?xml version="1.0"?><svg width="9pt" viewBox="0 0 9 8"><metadata>x</metadata>'
        '<g id="a" fill="#27303f" stroke="#5f6b80"><path clip-path="url(#b)" fill="none"/>'
        '<use xlink:href="#b"/></g><style>*{}</style></svg>'
    )
    assert adapted_svg(text, "p1", 'a "b" <c>') == (
        '<svg role="img" aria-label="a &quot;b&quot; &lt;c&gt;" viewBox="0 0 9 8" width="9" '
        'height="8" xmlns="http://www.w3.org/2000/svg"><g id="p1-a" '
        'style="fill: var(--c27303f, #27303f); stroke: var(--c5f6b80, #5f6b80)">'
        '<path clip-path="url(#p1-b)" fill="none"/><use href="#p1-b"/></g></svg>'
    )
    with pytest.raises(ValueError, match="picture p1: must be an SVG file, got 'none'"):
        adapted_svg("none", "p1", "")
