# SPDX-License-Identifier: Apache-2.0
"""darts-fast select: what search selects, from its directory, and each message a user can meet."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run
from test_cli import interrupt_after

from darts_fast.cli import main
from darts_fast.cost import DerivedSizes, cost_table
from darts_fast.nn import build_supernet
from darts_fast.selection import cheapest

SEARCH = [
    *("search", "--space", "nasbench201", "--init_channels", "4", "--layers", "1", "--limit", "32"),
    *("--batch_size", "16", "--threads", "1", "--cutout", "--cutout_length", "4"),
    *("--derive_channels", "4", "--derive_layers", "1"),
]
METHODS: dict[str, list[str]] = {
    "magnitude": [],
    "perturbation": ["--proj_intv", "1", "--seed", "3"],
    "one_shot": ["--proj_crit", "loss", "--proj_images", "8"],
    "strength": ["--strength_schedule", "progressive", "--proj_intv", "1"],
    "discretization": ["--proj_intv", "1", "--proj_images", "4"],
}
LONG = ("discretization", "strength")


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search that has ended; seed 3."""
    path = tmp_path_factory.mktemp("searched") / "run"
    threads = torch.get_num_threads()
    arguments = [*SEARCH, "--epochs", "2", "--seed", "3", "--select", "magnitude"]
    assert main([*arguments, "--save", str(path)]) == 0
    torch.set_num_threads(threads)
    return path


def results(run: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(run) / "results.json").read_text())
    return found


def contents(run: str | Path) -> dict[str, Any]:
    """Of the results, what does not tell of time and place."""
    kept = ("genotype", "magnitude_genotype", "history", "decisions", "limits", "derived")
    return {name: results(run)[name] for name in kept}


def files(run: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.iterdir()}


@pytest.mark.parametrize(
    "method",
    [pytest.param(method, marks=pytest.mark.slow if method in LONG else ()) for method in METHODS],
)
def test_it_selects_what_search_selects(darts_fast: Run, searched: Path, method: str) -> None:
    flags = [flag for flag in METHODS[method] if flag not in ("--seed", "3")]
    whole = [*SEARCH, "--epochs", "2", "--seed", "3", "--select", method, *flags]
    assert darts_fast(*whole, "--save", "whole")[0] == 0
    before = files(searched)
    status, out, err = darts_fast(
        "select", str(searched), "--method", method, *METHODS[method], "--save", "found"
    )
    assert (status, err) == (0, "")
    assert contents("found") == contents("whole")
    assert f"genotype = {results('found')['genotype']}" in out
    assert Path("found/genotype.txt").read_text() == Path("whole/genotype.txt").read_text()
    assert files(searched) == before


def test_every_kind_of_limit(darts_fast: Run, searched: Path) -> None:
    sizes = DerivedSizes(channels=8, layers=1, num_classes=10, image_size=(8, 8))
    macs = cost_table("macs", "nasbench201", sizes)
    bound = int(cheapest(macs) + 5)  # no convolution fits
    status, out, err = darts_fast(
        *("select", str(searched), "--method", "one_shot", "--derive_channels", "8"),
        *("--max_macs", str(bound), "--max_params", "1M", "--params_penalty", "0.5"),
        *("--max_latency_ms", "1G", "--save", "found"),
    )
    assert (status, err) == (0, "")
    found = results("found")
    assert "nor_conv" not in found["genotype"]
    assert [row["resource"] for row in found["limits"]] == ["macs", "params", "latency_ms"]
    assert found["limits"][0]["found"] <= bound
    assert found["limits"][1]["penalty"] == 0.5
    assert f"macs: {found['limits'][0]['found']:,.6g}, limit {bound:,.6g}" in out


@pytest.mark.parametrize(("steps", "signum"), [(1, signal.SIGINT), (9, signal.SIGTERM)])
def test_a_stopped_selection_goes_on_to_the_same_result(
    darts_fast: Run, searched: Path, steps: int, signum: signal.Signals
) -> None:
    arguments = ("select", os.path.relpath(searched), "--proj_intv", "1", "--save")
    darts_fast(*arguments, "whole")
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, steps, signum)
        status, _, err = darts_fast(*arguments, "run")
    assert status == 128 + signum
    assert err.splitlines()[-1].endswith("go on with: darts-fast select --resume --save run")
    assert not Path("run/results.json").exists()
    status, _, err = darts_fast("select", "--resume", "--save", "run")
    assert (status, err) == (0, "")
    assert contents("run") == contents("whole")


def test_a_search_that_was_stopped(darts_fast: Run) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 3, signal.SIGINT)
        assert darts_fast(*SEARCH, "--epochs", "9", "--save", "search")[0] == 130
    status, _, err = darts_fast(
        *("select", "search", "--method", "perturbation", "--proj_intv", "0", "--save", "found")
    )
    assert (status, err) == (0, "")
    state = torch.load("search/checkpoint.pt", weights_only=True)["state"]["search"]
    assert state["trainer"]["steps_done"] == 3
    net = build_supernet("nasbench201", channels=4, num_classes=10, layers=1)
    net.load_full_state_dict(state["net"])
    assert results("found")["magnitude_genotype"] == net.genotype()
    assert len(results("found")["decisions"]) == 6
    assert [row["epoch"] for row in results("found")["history"]] == [0, 1]


def test_a_supernet_of_an_earlier_epoch(darts_fast: Run) -> None:
    arguments = (*SEARCH, "--select", "one_shot", "--valid_freq", "0")
    darts_fast(*arguments, "--epochs", "2", "--ckpt_interval", "1", "--save", "search")
    for name in ("searched.pt", "supernet-002.pt"):  # the same weights
        status, out, _ = darts_fast(
            *("select", f"search/{name}", "--method", "one_shot", "--save", f"of-{name}")
        )
        assert status == 0
        assert ("warning: RUN has kept weights alone" in out) == (name == "supernet-002.pt")
        assert results(f"of-{name}")["decisions"] == results("search")["decisions"]
    darts_fast("select", "search/supernet-001.pt", "--method", "one_shot", "--save", "first")
    assert results("first")["decisions"] != results("search")["decisions"]
    Path("search/searched.pt").unlink()  # a search of an earlier version: its last supernet
    status, out, _ = darts_fast("select", "search", "--method", "one_shot", "--save", "last")
    assert "warning: RUN has kept weights alone" in out
    assert results("last")["decisions"] == results("search")["decisions"]


def test_other_commands_read_the_result(darts_fast: Run, searched: Path) -> None:
    darts_fast("select", str(searched), "--method", "magnitude", "--save", "found")
    status, out, err = darts_fast(
        "report", str(searched), "found", "--out", "page", "--formats", ""
    )
    assert (status, err) == (0, "")
    assert "darts-fast select" in Path("page/report.html").read_text()
    status, out, _ = darts_fast("status", "found")
    assert "found: finished" in out
    status, _, err = darts_fast(
        *("train", "--arch", "found/genotype.txt", "--epochs", "1", "--limit", "32"),
        *("--init_channels", "4", "--layers", "1", "--batch_size", "16", "--save", "trained"),
    )
    assert (status, err) == (0, "")
    assert results("trained")["derived"][0]["genotype"] == results("found")["genotype"]


def test_a_run_without_save_gets_a_dated_directory(darts_fast: Run, searched: Path) -> None:
    assert darts_fast("select", str(searched), "--method", "magnitude")[0] == 0
    (found,) = Path("runs").iterdir()
    assert found.name.startswith("select-")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'RUN'"),
        (["nowhere"], "run directory nowhere: no config.json in it"),
        (["trained"], "run directory trained: must be of a search, not of another"),
        (["empty"], "run directory empty: holds no supernet of a search"),
        (["damaged"], "checkpoint damaged/searched.pt: damaged or not a checkpoint"),
        (["damaged/other.pt"], "run directory damaged/other.pt: no config.json in it"),
        (["SEARCHED", "--max_macs", "10"], "limit: macs must be at least"),
        (["SEARCHED", "--macs_penalty", "1"], "--macs_penalty: needs --max_macs"),
        (
            ["SEARCHED", "--method", "discretization", "--max_macs", "1G"],
            "--select discretization: takes no limits",
        ),
        (["SEARCHED", "--method", "magnitude", "--race"], "--race: needs --select perturbation"),
        (["SEARCHED", "--proj_images", "99"], "proj_images must be 1 to 16"),
        (["SEARCHED", "--data", "nowhere"], "nowhere"),
        (["SEARCHED", "--previous"], "--previous: belongs to --resume"),
        (["SEARCHED", "--method", "best"], "'best' is not one of"),
    ],
)
def test_errors_are_one_line_and_leave_no_directory(
    darts_fast: Run, searched: Path, arguments: list[str], message: str
) -> None:
    for name, command in (("trained", "train"), ("empty", "search"), ("damaged", "search")):
        Path(name).mkdir()
        config = {**json.loads((searched / "config.json").read_text()), "command": command}
        Path(name, "config.json").write_text(json.dumps(config))
    Path("damaged/searched.pt").write_bytes((searched / "searched.pt").read_bytes()[:-9])
    given = [str(searched) if word == "SEARCHED" else word for word in arguments]
    status, _, err = darts_fast("select", *given, "--save", "found")
    assert status == 2
    assert message in err
    assert len(err.splitlines()) == 1
    assert not Path("found").exists()


def test_what_is_there_is_not_written_over(darts_fast: Run, searched: Path) -> None:
    shutil.copytree(searched, "run")
    before = files(Path("run"))
    status, _, err = darts_fast("select", "run", "--method", "magnitude", "--save", "run")
    assert (status, files(Path("run"))) == (2, before)
    assert "--save: name another directory than that of RUN" in err
    status, _, err = darts_fast(
        "select", "run/searched.pt", "--method", "magnitude", "--save", "run", "--overwrite"
    )
    assert (status, files(Path("run"))) == (2, before)
    Path("notes").mkdir()
    Path("notes/mine.txt").write_text("mine")
    status, _, err = darts_fast("select", "run", "--method", "magnitude", "--save", "notes")
    assert status == 2
    assert "run directory notes: it is not empty; pass --overwrite" in err
    assert darts_fast(*("select", "run", "--save", "notes", "--resume"))[0] == 2


def test_a_supernet_that_was_selected_from_is_refused(darts_fast: Run) -> None:
    darts_fast(*SEARCH, "--epochs", "1", "--proj_intv", "0", "--save", "search")
    status, _, err = darts_fast("select", "search/checkpoint.pt", "--save", "found")
    assert status == 2
    assert "the run was selecting already" in err
    assert not Path("found").exists()
