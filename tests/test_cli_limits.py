# SPDX-License-Identifier: Apache-2.0
"""Limits and early stopping from the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from worlds import Processes

from darts_fast.cost import DerivedSizes, cost_table
from darts_fast.selection import cheapest
from darts_fast.spaces import read_genotype

TINY = [
    *("search", "--space", "nasbench201", "--init_channels", "4", "--layers", "1", "--limit", "32"),
    *("--batch_size", "16", "--epochs", "1", "--proj_intv", "0", "--threads", "1"),
    *("--derive_channels", "4", "--derive_layers", "1"),
]
SIZES = DerivedSizes(channels=4, layers=1, num_classes=10, image_size=(8, 8))


def results(run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(run) / "results.json").read_text())
    return found


@pytest.mark.parametrize("select", ["perturbation", "one_shot", "magnitude"])
def test_a_search_keeps_its_limits(darts_fast: Run, select: str) -> None:
    macs, params = (cost_table(name, "nasbench201", SIZES) for name in ("macs", "params"))
    bound = int(cheapest(macs) + 5)  # no convolution fits
    status, out, err = darts_fast(
        *(*TINY, "--select", select, "--max_macs", str(bound), "--max_params", "1M"),
        *("--save", "run"),
    )
    assert (status, err) == (0, "")
    found = results("run")
    genotype = read_genotype(found["genotype"])
    assert "nor_conv" not in found["genotype"]
    assert found["limits"] == [
        {"resource": "macs", "most": bound, "penalty": None, "found": macs.total(genotype)},
        {"resource": "params", "most": 1e6, "penalty": None, "found": params.total(genotype)},
    ]
    assert f"macs: {macs.total(genotype):,.6g}, limit {bound:,.6g}" in out


def test_measured_latencies_are_those_of_the_run_when_it_goes_on(darts_fast: Run) -> None:
    status, out, err = darts_fast(
        *(*TINY, "--select", "magnitude", "--max_latency_ms", "1G", "--latency_penalty", "0.5"),
        *("--save", "run"),
    )
    assert (status, err) == (0, "")
    (row,) = results("run")["limits"]
    assert (row["resource"], row["most"], row["penalty"]) == ("latency_ms", 1e9, 0.5)
    assert 0 < row["found"] < 1e4
    assert re.search(r"latency_ms: [\d.]+, limit 1e\+09", out)
    status, _, err = darts_fast("search", "--save", "run", "--resume")
    assert (status, err) == (0, "")
    assert results("run")["limits"] == [row]


def test_a_search_may_be_watched_in_both_ways(darts_fast: Run) -> None:
    status, _, err = darts_fast(
        *(*TINY, "--select", "magnitude", "--early_stop", "adaptive", "--max_skips", "0"),
        *("--save", "run", "--epochs", "3"),
    )
    assert (status, err) == (0, "")
    log = Path("run/log.txt").read_text()
    stopped = "skip connections in the normal cell" in log
    assert stopped or len(re.findall(r"eigenvalue -?\d\.\d+e[+-]\d\d", log)) == 2
    assert ("early stopping: back from epoch" in log) == stopped


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max_macs", "10"], "limit: macs must be at least"),
        (["--max_macs", "many"], "must be a positive number such as 3500000 or 3.5M, got 'many'"),
        (["--macs_penalty", "1"], "--macs_penalty: needs --max_macs"),
        (["--latency_penalty", "1"], "--latency_penalty: needs --max_latency_ms"),
        (
            ["--max_macs", "1G", "--select", "discretization", "--proj_intv", "1"],
            "--select discretization: takes no limits",
        ),
        (
            ["--max_macs", "1G", "--macs_penalty", "1", "--race", "--proj_crit", "loss"],
            "a penalty needs scores of all images, got a race",
        ),
    ],
)
def test_errors_of_limits_are_one_line_and_leave_no_directory(
    darts_fast: Run, arguments: list[str], message: str
) -> None:
    status, _, err = darts_fast(*TINY, *arguments, "--save", "run")
    assert status == 2
    assert message in err
    assert len(err.splitlines()) == 1
    assert not Path("run").exists()


@pytest.mark.slow
def test_processes_share_one_measured_table_and_one_eigenvalue(tmp_path: Path) -> None:
    """A difference between them would end the run: weights are compared after every epoch."""
    run = tmp_path / "run"
    processes = Processes.of_command(
        tmp_path,
        *(*TINY, "--epochs", "3", "--early_stop", "adaptive", "--max_latency_ms", "1G"),
        *("--latency_penalty", "0.5", "--select", "one_shot", "--save", str(run)),
    )
    assert processes.wait() == [0, 0], processes.texts
    found = results(str(run))
    assert [row["resource"] for row in found["limits"]] == ["latency_ms"]
    assert found["genotype"] == (run / "genotype.txt").read_text().strip()
    assert len(re.findall("eigenvalue ", (run / "log.txt").read_text())) == 2
