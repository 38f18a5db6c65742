# SPDX-License-Identifier: Apache-2.0
"""The analyses of DARTS-PT: what they compute, what they draw, and their commands."""

from __future__ import annotations

import copy
import json
import math
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run
from selection_cases import small_batches, small_net
from torch import Tensor

from darts_fast.nn import Supernet
from darts_fast.report import (
    draw_discretization,
    draw_proposition,
    draw_strength,
    draw_trajectory,
)
from darts_fast.runs import RunDirectory
from darts_fast.selection import (
    MagnitudeSelection,
    PerturbationConfig,
    PerturbationSelection,
    magnitude_genotype,
    removal_scores,
    strengths,
)
from darts_fast.selection.analysis import (
    EdgeStrengths,
    SkipPoint,
    _edge_outputs,
    agreement,
    compare_strength,
    select_copies,
    skip_gap,
    skip_points,
)


def test_weights_and_strengths_stand_beside_each_other() -> None:
    net, batches = small_net("nasbench201"), small_batches(8, 4)
    rows = compare_strength(net, batches)
    assert [(row.cell_type, row.edge) for row in rows] == [("cell", edge) for edge in range(6)]
    scores = removal_scores(net, batches, cell_type="cell")
    taylor = strengths(net, batches).tables["cell"]
    for row in rows:
        weights = net.edge_weights()["cell"][row.edge]
        assert row.weights == weights.tolist()
        expected = scores.loss[row.edge] - scores.base.loss
        assert row.loss == pytest.approx(expected.tolist(), abs=1e-12)
        lost = scores.base.accuracy - scores.accuracy[row.edge]
        assert row.accuracy == pytest.approx(lost.tolist())
        assert row.taylor == pytest.approx(taylor[row.edge].tolist())
        assert row.loss[0] == 0  # the removal of none


def row_of(weights: list[float], loss: list[float]) -> EdgeStrengths:
    ops = tuple("abc")[: len(weights)]
    return EdgeStrengths("cell", 0, ops, weights, loss, loss, loss)


def test_agreement_is_the_mean_rank_correlation_over_edges() -> None:
    same, opposite = row_of([1, 2, 3], [4, 5, 6]), row_of([1, 2, 3], [6, 5, 4])
    swapped = row_of([1, 2, 3], [4, 6, 5])
    assert agreement([same], "weights", "loss") == {"spearman": 1, "kendall": 1, "top": 1}
    found = agreement([same, opposite, swapped], "weights", "loss")
    assert found["spearman"] == pytest.approx((1 - 1 + 0.5) / 3)
    assert found["kendall"] == pytest.approx((1 - 1 + 1 / 3) / 3)
    assert found["top"] == pytest.approx(1 / 3)
    flat = agreement([row_of([1, 1, 1], [1, 2, 3])], "weights", "loss")
    assert math.isnan(flat["spearman"])


@pytest.mark.parametrize("space", ["nasbench201", "s5", "s2"])
def test_states_of_the_analysis_are_those_of_the_network(space: str) -> None:
    net = small_net(space).double().train()
    (images, _), _ = small_batches(8, 4)
    seen: list[tuple[torch.nn.Module, tuple[Tensor, ...], Tensor]] = []
    cells = [m for m in net.modules() if type(m).__name__ in ("Cell", "NAS201SearchCell")]
    for cell in cells:
        cell.register_forward_hook(lambda m, i, o: seen.append((m, i, o)))
    with torch.no_grad():
        net(images.double())
        cell, inputs, output = seen[0]
        edges = _edge_outputs(net, cell, inputs)
        # The last node is the sum of its edges' mixed operations; put raw for standardised.
        last = list(net.space.node_edges.values())[-1]
        states = _states(net, cell, inputs)
        width = states[-1].shape[1]
        torch.testing.assert_close(states[-1], output[:, -width:], rtol=1e-8, atol=1e-10)
        for edge in last:
            for op, y in enumerate(edges[edge]):
                raw = _candidates(cell)[edge][op](states[net.space.edges[edge][0]])
                if raw.var() == 0:
                    assert torch.equal(y, torch.zeros_like(y))
                    continue
                expected = torch.nn.functional.batch_norm(raw, None, None, training=True)
                torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-8)


def _candidates(cell: torch.nn.Module) -> list[list[torch.nn.Module]]:
    if hasattr(cell, "_ops"):
        return [list(edge._ops) for edge in cell._ops]  # type: ignore[union-attr]
    return [list(edge) for edge in cell.edges.values()]  # type: ignore[operator, union-attr]


def _states(net: Supernet, cell: torch.nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    weights = inputs[-1] if len(inputs) == 2 else inputs[2]
    states = [inputs[0]]
    if hasattr(cell, "preprocess0"):
        states = [cell.preprocess0(inputs[0]), cell.preprocess1(inputs[1])]  # type: ignore[operator]
    for edges in net.space.node_edges.values():
        terms = [
            w * op(states[net.space.edges[edge][0]])
            for edge in edges
            for w, op in zip(weights[edge], _candidates(cell)[edge], strict=True)
        ]
        states.append(sum(terms[1:], terms[0]))
    return states


@pytest.mark.parametrize(("space", "cells"), [("nasbench201", 3), ("s5", 1)])
def test_proposition_on_the_maps_of_a_network(space: str, cells: int) -> None:
    net = small_net(space).eval()
    (images, _), _ = small_batches(8, 4)
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    points = skip_points(net, images)
    assert all(torch.equal(buffers[name], buffer) for name, buffer in net.named_buffers())
    assert not net.training
    edges = net.space.num_edges
    assert len(points) == cells * edges
    cell_type = net.space.cell_types[0]
    weights = net.edge_weights()[cell_type].detach()
    for point in points:
        v_x, v_o, c = point.skip_error, point.op_error, point.product
        assert point.predicted == pytest.approx((v_o - c) / (v_o + v_x - 2 * c), abs=1e-6)
        names = net.space.primitives[cell_type][point.edge]
        skip, op = (float(weights[point.edge, names.index(n)]) for n in ("skip_connect", point.op))
        assert point.actual == pytest.approx(skip / (skip + op))
        convolutions = [w for w, n in zip(weights[point.edge], names, strict=True) if "conv" in n]
        assert op == pytest.approx(float(max(convolutions)))
    named = skip_points(net, images, op=net.space.primitives[cell_type][0][-1])
    assert {point.op for point in named} == {net.space.primitives[cell_type][0][-1]}
    with pytest.raises(ValueError, match=r"must be one of space .*, got 'x'"):
        skip_points(net, images, op="x")


def test_skip_gap_is_the_mean_lead_over_the_strongest_convolution() -> None:
    net = small_net("nasbench201")
    with torch.no_grad():
        net.arch_parameters()[0].copy_(torch.log(torch.tensor([1.0, 4.0, 2.0, 3.0, 5.0])))
    assert skip_gap(net) == pytest.approx((4 - 3) / 15)
    assert math.isnan(skip_gap(small_net("s4")))  # has no skip connection


def test_selections_from_copies_leave_the_network() -> None:
    net, batches = small_net("nasbench201"), small_batches(6, 6)
    before = copy.deepcopy(net.state_dict())
    config = PerturbationConfig(proj_intv=0, proj_crit="loss")
    found = select_copies(
        net,
        batches,
        {
            "magnitude": lambda twin: MagnitudeSelection(twin, proj_intv=0),
            "perturbation": lambda twin: PerturbationSelection(twin, batches, config),
        },
    )
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert net.projection.undecided_edges("cell") == list(range(6))
    assert found["magnitude"][0] == magnitude_genotype(net)
    PerturbationSelection(net, batches, config).run()
    assert found["perturbation"][0] == net.genotype()
    own = removal_scores(net, batches, cell_type="cell", edges=[0]).base
    assert found["perturbation"][1] == own


# Pictures


@pytest.mark.parametrize("space", ["s1", "s5"])
def test_pictures_are_written(space: str, tmp_path: Path) -> None:
    net = small_net(space)
    rows = [
        EdgeStrengths(
            name, edge, ops, [0.5] * len(ops), *[[0.1 * i for i, _ in enumerate(ops)]] * 3
        )
        for name in net.space.cell_types
        for edge, ops in enumerate(net.space.primitives[name])
    ]
    points = [SkipPoint(0, edge, "conv", 0.4, 0.8, 0.1, 0.7, 0.6) for edge in range(3)]
    path = tmp_path / "a.png"
    for draw in (
        lambda p: draw_strength(rows, net.space, p, title="title"),
        lambda p: draw_discretization(rows[:2], [[50.0] * len(rows[0].ops)] * 2, net.space, p),
        lambda p: draw_proposition(points, [(1, 30.0, 0.1), (2, 40.0, 0.2)], p, title="title"),
        lambda p: draw_trajectory(
            [{"method": "magnitude", "epoch": 1, "accuracy": 50.0, "skips": 3}], p
        ),
    ):
        assert draw(path) == path
        assert path.read_bytes().startswith(b"\x89PNG")
        with pytest.raises(ValueError, match=r"must end in .png, .pdf or .svg, got 'a.txt'"):
            draw(tmp_path / "a.txt")


# Commands

TINY = [
    *("--space", "nasbench201", "--init_channels", "4", "--layers", "1", "--limit", "64"),
    *("--batch_size", "8", "--epochs", "2", "--proj_intv", "1", "--threads", "1"),
]


def test_analyses_of_a_search(darts_fast: Run, tmp_path: Path) -> None:
    arguments = (*TINY, "--select", "magnitude", "--ckpt_interval", "1", "--save", "run")
    assert darts_fast("search", *arguments)[0] == 0
    assert sorted(path.name for path in Path("run").glob("supernet-*")) == [
        "supernet-001.pt",
        "supernet-002.pt",
    ]

    status, out, err = darts_fast("analyze", "strength", "run", "--images", "16")
    assert (status, err) == (0, "")
    assert "picture: run/analysis/strength.png" in out
    assert "cell, best by weight: " in out
    found = json.loads(Path("run/analysis/strength.json").read_text())
    assert found["epoch"] == 2
    assert len(found["edges"]) == 6

    status, out, err = darts_fast("analyze", "proposition", "run", "--out", "elsewhere")
    assert (status, err) == (0, "")
    assert "epoch 1: accuracy" in out
    found = json.loads(Path("elsewhere/proposition.json").read_text())
    assert [gap["epoch"] for gap in found["gaps"]] == [1, 2]
    assert len(found["points"]) == 18
    assert Path("elsewhere/proposition.png").is_file()

    flags = ("--edges", "2", "--tune_epochs", "1")
    status, out, err = darts_fast("analyze", "discretization", "run", *flags)
    assert (status, err) == (0, "")
    edges = json.loads(Path("run/analysis/discretization.json").read_text())["edges"]
    assert len({edge["edge"] for edge in edges}) == 2
    assert all(len(edge["discretized_accuracy"]) == 5 for edge in edges)
    assert Path("run/analysis/discretization.png").is_file()

    methods = ("magnitude", "perturbation", "one_shot", "strength")
    flags = [word for name in methods for word in ("--select", name)]
    status, out, err = darts_fast("analyze", "trajectory", "run", *flags, "--race")
    assert (status, err) == (0, "")
    points = json.loads(Path("run/analysis/trajectory.json").read_text())["points"]
    assert [(p["epoch"], p["method"]) for p in points] == [(e, m) for e in (1, 2) for m in methods]
    assert Path("run/analysis/trajectory.png").is_file()

    table = {point["genotype"]: 90 + i for i, point in enumerate(points)}
    Path("table.json").write_text(json.dumps(table))
    status, out, _ = darts_fast("analyze", "trajectory", "run", "--table", "table.json")
    assert status == 0
    assert f"accuracy {table[points[0]['genotype']]:.2f} %" in out


def test_errors_of_analyze_are_one_line(darts_fast: Run) -> None:
    for arguments, message in (
        (("strength", "run"), "run directory run: no config.json in it"),
        (("trajectory", "run", "--select", "x"), "'x' is not one of"),
    ):
        status, _, err = darts_fast("analyze", *arguments)
        assert (status, err.count("\n")) == (2, 1)
        assert message in err
    arguments = (*TINY, "--select", "magnitude", "--save", "run")
    assert darts_fast("search", *arguments)[0] == 0
    Path("table.json").write_text("{}")
    for arguments, message in (
        (("strength", "run", "--epoch", "1"), "the run has kept [2], got 1"),
        (("proposition", "run", "--op", "x"), "must be one of space nasbench201, got 'x'"),
        (("trajectory", "run", "--table", "table.json"), "must have every architecture, got none"),
        (("trajectory", "run", "--table", "nowhere"), "no such file"),
    ):
        status, _, err = darts_fast("analyze", *arguments)
        assert (status, err.count("\n")) == (2, 1), err
        assert message in err
    Path("run/supernet-002.pt").unlink()
    status, _, err = darts_fast("analyze", "strength", "run")
    assert status == 2
    assert "no supernet-*.pt in it" in err


@pytest.mark.parametrize(
    "flags",
    [
        ("--select", "perturbation", "--race", "--race_error", "0.2", "--race_margin", "0.1"),
        ("--select", "one_shot", "--race", "--proj_crit", "loss", "--race_min_batches", "2"),
        ("--select", "one-shot"),
        ("--select", "strength"),
        ("--select", "strength", "--strength_schedule", "progressive"),
        ("--select", "discretization"),
    ],
)
def test_every_selection_runs_from_the_command_line(darts_fast: Run, flags: tuple[str]) -> None:
    status, out, err = darts_fast("search", *TINY, "--limit", "32", *flags, "--save", "run")
    assert (status, err) == (0, "")
    results = json.loads(Path("run/results.json").read_text())
    assert f"genotype = {results['genotype']}" in out
    assert len(results["decisions"]) == 6
    raced = "--race" in flags
    for decision in results["decisions"]:
        if raced:
            assert "6 races: " in out
            assert decision["outcomes"][0] in ("decided", "exhausted")
            assert len(decision["images_used"][0]) == 5
        elif decision["outcomes"]:
            assert decision["outcomes"] == ["full"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--select", "strength", "--race"), "--race: needs --select perturbation or one_shot"),
        (("--select_mode", "compat", "--race"), "a race needs mode paired, got 'compat'"),
        (("--race", "--race_max_batches", "3"), "max_batches must be at least min_batches = 4"),
        (("--race", "--proj_crit", "loss", "--race_bound", "bernstein"), "needs proj_crit acc"),
        (
            (
                *("--select", "strength", "--strength_variant", "exact"),
                *("--strength_schedule", "progressive"),
            ),
            "variant exact needs schedule one_shot",
        ),
        (("--select", "discretization", "--proj_intv", "0"), "proj_intv must be 1 or more, got 0"),
    ],
)
def test_selection_flags_are_checked(darts_fast: Run, flags: tuple[str, ...], message: str) -> None:
    status, _, err = darts_fast("search", *TINY, *flags, "--save", "run")
    assert (status, err.count("\n")) == (2, 1)
    assert message in err
    assert not Path("run").exists()


def test_an_overwritten_run_leaves_no_old_supernets(darts_fast: Run) -> None:
    arguments = (*TINY, "--select", "magnitude", "--save", "run")
    darts_fast("search", *arguments, "--ckpt_interval", "1")
    darts_fast("search", *arguments, "--overwrite")
    assert [path.name for path in Path("run").glob("supernet-*")] == ["supernet-002.pt"]


@pytest.mark.parametrize(
    ("analysis", "flags"),
    [
        ("trajectory", ("--select", "perturbation")),
        ("discretization", ("--edges", "2", "--tune_epochs", "1")),
    ],
)
def test_an_analysis_that_was_stopped_goes_on(
    darts_fast: Run, monkeypatch: pytest.MonkeyPatch, analysis: str, flags: tuple[str, ...]
) -> None:
    arguments = (*TINY, "--select", "magnitude", "--ckpt_interval", "1", "--save", "run")
    assert darts_fast("search", *arguments)[0] == 0
    command = ("analyze", analysis, "run", *flags)
    assert darts_fast(*command, "--out", "whole")[0] == 0
    done: list[int] = []
    save = RunDirectory.save_checkpoint

    def stopped(self: RunDirectory, state: Any) -> Path:
        done.append(len(state["state"]["results"]))
        if len(done) == 1:
            signal.raise_signal(signal.SIGTERM)
        return save(self, state)

    monkeypatch.setattr(RunDirectory, "save_checkpoint", stopped)
    status, _, err = darts_fast(*command)
    assert status == 143
    assert re.search(
        rf"stopped by SIGTERM in phase {analysis} after 1 of 2 steps; go on with: the same command "
        r"and --resume\n$",
        err,
    )
    status, _, err = darts_fast(*command, "--images", "8", "--resume")
    assert status == 2
    assert f"run/analysis/{analysis} was begun with other settings: images" in err
    status, _, err = darts_fast(*command, "--previous")
    assert (status, err) == (2, "darts-fast: --previous: belongs to --resume\n")
    assert darts_fast(*command, "--resume")[0] == 0
    assert done == [1, 2]
    found, whole = (Path(where) / f"{analysis}.json" for where in ("run/analysis", "whole"))
    assert found.read_text() == whole.read_text()
