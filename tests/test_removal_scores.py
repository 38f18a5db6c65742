# SPDX-License-Identifier: Apache-2.0
"""`removal_scores`: sets of removals, and the table of what they did."""

from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path

import matplotlib.image
import pytest
import torch
from removal_cases import naive, small_batches, small_net, without
from rich.console import Console

from darts_fast.selection import scores as scores_module
from darts_fast.selection.removals import Removal, every_removal
from darts_fast.selection.scores import RemovalScores, removal_scores
from darts_fast.selection.tables import TableScores


def planted(losses: list[list[float]], rows: list[Removal] | None = None) -> RemovalScores:
    """Row 0 is the base; two images a batch, all of them right."""
    loss = torch.tensor(losses, dtype=torch.float64)
    count = loss.shape[1]
    sums = TableScores(loss, torch.full_like(loss, 2.0), torch.full((count,), 2.0).double())
    rows = rows or [Removal((("normal", i, 0),), f"normal {i} x") for i in range(len(losses) - 1)]
    return RemovalScores(tuple(rows), sums)


def test_every_removal_of_the_network_in_one_call() -> None:
    net, batches = small_net("s2", layers=3), small_batches((4, 3))
    scores = removal_scores(net, batches)
    assert len(scores.rows) == 2 * 14 * 2
    assert scores.loss.shape == scores.accuracy_stderr.shape == (56,)
    assert [row.name for row in scores.rows[:3]] == [
        *("normal 0 skip_connect", "normal 0 sep_conv_3x3", "normal 1 skip_connect"),
    ]
    # The grid of one cell type holds the same numbers.
    reduce = removal_scores(net, batches, cell_type="reduce", edges=[5, 2])
    places = {row.places: i for i, row in enumerate(scores.rows)}
    for i, edge in enumerate((5, 2)):
        for op in range(2):
            row = places[(("reduce", edge, op),)]
            assert reduce.loss[i, op] == scores.loss[row]
            assert reduce.accuracy[i, op] == scores.accuracy[row]
            assert torch.equal(reduce.batch_loss[i, op], scores.batch_loss[row])
    assert reduce.loss.shape == (2, 2)
    assert reduce.batch_correct.shape == (2, 2, 2)
    assert reduce.base == scores.base
    assert scores.images == 7


def test_s5_has_196_removals() -> None:
    net = small_net("s5", layers=1)
    rows = every_removal(net.space)
    assert len(rows) == len({row.name for row in rows}) == 196


def test_mixed_sets_are_what_they_say() -> None:
    net, batches = small_net("s3", layers=3), small_batches((4,))
    sets = [
        ("normal", 3, 1),
        ("reduce", 2, "sep_conv_3x3"),
        ("normal", 4),
        [("normal", 3, 1), ("normal", 13)],
        [("normal", 4), ("reduce", 0, 0)],
    ]
    scores = removal_scores(net, batches, removals=sets)
    assert [row.name for row in scores.rows] == [
        "normal 3 skip_connect",
        "reduce 2 sep_conv_3x3",
        "normal 4",
        "normal 3 skip_connect + normal 13",
        "normal 4 + reduce 0 none",
    ]
    tables = [
        without(net, ("normal", 3, 1)),
        without(net, ("reduce", 2, 2)),
        without(net, ("normal", 4, None)),
        without(net, ("normal", 3, 1), ("normal", 13, None)),
        without(net, ("normal", 4, None), ("reduce", 0, 0)),
    ]
    expected = naive(net, batches, tables).loss.sum(1) / 4
    torch.testing.assert_close(scores.loss, expected, rtol=0, atol=1e-5)
    again = removal_scores(net, batches, tables=tables)
    assert torch.equal(again.loss, scores.loss)
    assert again.rows[1] == Removal((), "table 1")
    same = removal_scores(net, batches, removals=scores.rows)
    assert same.rows == scores.rows
    assert torch.equal(same.loss, scores.loss)


def test_differences_are_paired() -> None:
    # Batch 1 is hard for everybody: that is in the scores' errors and not in the difference's.
    scores = planted([[2.0, 20.0, 4.0], [3.0, 21.4, 5.2]])
    difference = scores.difference(0)
    assert difference.loss == pytest.approx(0.6)
    deviations = [0.5 - 0.6, 0.7 - 0.6, 0.6 - 0.6]
    assert difference.loss_stderr == pytest.approx(math.sqrt(sum(d * d for d in deviations) / 6))
    assert difference.loss_stderr < scores.loss_stderr[0] / 10
    assert difference.accuracy == 0
    assert scores.difference("base", "normal 0 x").loss == pytest.approx(-0.6)
    with pytest.raises(ValueError, match=r"base, a name or in 0\.\.0, got 'x'"):
        scores.difference("x")


def test_the_difference_of_equal_batches_is_the_mean_and_its_standard_error() -> None:
    net, batches = small_net("s2", layers=3), small_batches((4, 4, 4))
    scores = removal_scores(net, batches, cell_type="normal", edges=[0])
    per_batch = (scores.batch_loss[0, 1] - scores.batch_loss[0, 0]) / 4
    difference = scores.difference("normal 0 sep_conv_3x3", "normal 0 skip_connect")
    assert difference.loss == pytest.approx(per_batch.mean().item())
    assert difference.loss_stderr == pytest.approx(per_batch.std().item() / math.sqrt(3))


def test_losses_that_are_not_finite_are_named() -> None:
    net, batches = small_net("s2", layers=3), small_batches((4,))
    with torch.no_grad():
        for cell in net.cells:
            if not cell.reduction:
                cell._ops[2]._ops[1].op[1].weight.fill_(float("nan"))
    expected = "3 of 4 losses are not finite: base, normal 2 skip_connect, normal 3"
    sets = [("normal", 2, 0), ("normal", 2, 1), ("normal", 3)]
    with pytest.warns(RuntimeWarning, match=re.escape(expected)) as caught:
        scores = removal_scores(net, batches, removals=sets)
    assert caught[0].filename == __file__
    assert [row.name for row in scores.not_finite] == ["normal 2 skip_connect", "normal 3"]
    assert scores.loss.isfinite().tolist() == [False, True, False]


@pytest.mark.parametrize("grid", [True, False])
def test_json_gives_back_every_bit(tmp_path: Path, grid: bool) -> None:
    net, batches = small_net("s2", layers=3), small_batches((4, 3))
    chosen = {"cell_type": "reduce", "edges": [5, 0]} if grid else {"removals": [("normal", 1)]}
    scores = removal_scores(net, batches, **chosen)  # type: ignore[arg-type]
    scores.to_json(tmp_path / "scores.json")
    again = RemovalScores.from_json(tmp_path / "scores.json")
    assert (again.rows, again.cell_type, again.edges) == (
        *(scores.rows, scores.cell_type, scores.edges),
    )
    for name in ("loss", "accuracy", "loss_stderr", "batch_loss", "batch_correct", "batch_images"):
        assert torch.equal(getattr(again, name), getattr(scores, name))


def test_json_of_losses_that_are_not_finite(tmp_path: Path) -> None:
    planted([[1.0], [math.inf], [math.nan]]).to_json(tmp_path / "scores.json")
    assert "NaN" not in (tmp_path / "scores.json").read_text()
    again = RemovalScores.from_json(tmp_path / "scores.json")
    assert again.loss[0] == math.inf
    assert again.loss[1].isnan()


@pytest.mark.parametrize("text", ["{}", "[]", "{", '{"kind": "darts_fast removal scores"}'])
def test_json_of_something_else(tmp_path: Path, text: str) -> None:
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ValueError, match="the file must hold removal scores"):
        RemovalScores.from_json(tmp_path / "other.json")


def test_csv_has_a_line_per_removal(tmp_path: Path) -> None:
    scores = planted([[2.0, 20.0, 4.0], [3.0, 21.4, 5.2], [2.0, 20.0, 4.0]])
    scores.to_csv(tmp_path / "scores.csv")
    lines = list(csv.DictReader((tmp_path / "scores.csv").open(newline="")))
    assert [line["removal"] for line in lines] == ["base", "normal 0 x", "normal 1 x"]
    assert float(lines[1]["loss"]) == scores.loss[0]
    assert float(lines[1]["loss_difference"]) == scores.difference(0).loss
    assert float(lines[1]["loss_difference_stderr"]) == scores.difference(0).loss_stderr
    assert lines[2]["images"] == "6"


def test_plot_shows_every_cell_type(tmp_path: Path) -> None:
    rows = [
        *(Removal((("normal", e, o),), f"normal {e} op{o}") for e in (0, 3) for o in (0, 1)),
        Removal((("reduce", 1, None),), "reduce 1"),
        Removal((("normal", 0, 0), ("reduce", 1, None)), "a pair"),
    ]
    losses = [[1.0], [0.5], [2.0], [math.nan], [1.0], [9.0], [7.0]]
    planted(losses, rows).plot(tmp_path / "scores.png")
    picture = matplotlib.image.imread(tmp_path / "scores.png")
    assert picture.shape[0] > 200
    assert len({tuple(pixel) for pixel in picture[::3, ::3].reshape(-1, 4).tolist()}) > 20
    planted(losses, rows).plot(tmp_path / "scores.svg")
    text = (tmp_path / "scores.svg").read_text()
    assert all(name in text for name in ("op0", "whole edge", "reduce cells"))
    with pytest.raises(ValueError, match="needs removals of single operations or edges"):
        planted([[1.0], [2.0]], rows[-1:]).plot(tmp_path / "none.png")


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_counts_evaluations(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(
        scores_module,
        "Console",
        lambda **_: Console(file=shown, force_terminal=terminal, width=100),
    )
    net, batches = small_net("s2", layers=3), small_batches((4, 3))
    calls: list[int] = []
    removal_scores(
        *(net, batches),
        removals=[("normal", 0), ("normal", 1)],
        between=lambda: calls.append(1),
        progress=True,
    )
    assert len(calls) == 6
    assert ("6/6" in shown.getvalue()) == terminal


def test_arguments_are_checked() -> None:
    net, batches = small_net("s2", layers=1), small_batches((4,))
    for removal, message in (
        (("normal", 14, 0), "edges must be in 0..13, got 14"),
        (("cell", 0, 0), "cell_type must be one of normal, reduce, got 'cell'"),
        (("normal", 0, 2), "op must be in 0..1 or one of skip_connect, sep_conv_3x3, got 2"),
        (("normal", 0, "none"), "got 'none'"),
        (("normal",), "a removal must be (cell type, edge, op), (cell type, edge) or a list"),
        ("normal", "a removal must be"),
        ([], "a removal must be"),
        ([3], "a removal must be"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            removal_scores(net, batches, removals=[removal])
    with pytest.raises(ValueError, match="give one of cell_type, removals and tables"):
        removal_scores(net, batches, cell_type="normal", removals=[("normal", 0)])
    with pytest.raises(ValueError, match=r"edges need a cell_type, got edges \[1\]"):
        removal_scores(net, batches, edges=[1])
    with pytest.raises(ValueError, match="needs at least one removal, got none"):
        removal_scores(net, batches, removals=[])
