# SPDX-License-Identifier: Apache-2.0
"""What bench/gpu_check.py makes of test and benchmark files, and what it does without a device."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from gpu_cases import CASES
from simt_build import ROOT

sys.path.insert(0, str(ROOT / "bench"))

import bench_gpu
import gpu_check

JUNIT = """<testsuites><testsuite>
<testcase classname="tests.a" name="good"/>
<testcase classname="tests.a" name="bad"><failure message="1 != 2">long</failure></testcase>
<testcase classname="tests.a" name="late"><error message="no file"/></testcase>
<testcase classname="tests.b" name="small"><skipped message="needs 40 GB"/></testcase>
</testsuite></testsuites>"""


def test_every_test_that_did_not_pass_is_named(tmp_path):
    (tmp_path / "tests.xml").write_text(JUNIT)
    found = gpu_check.outcomes(tmp_path / "tests.xml")
    assert found["counts"] == {"passed": 1, "failure": 1, "error": 1, "skipped": 1}
    assert found["not_passed"] == {
        "tests.a::bad": "failure: 1 != 2",
        "tests.a::late": "error: no file",
        "tests.b::small": "skipped: needs 40 GB",
    }


def test_benchmarks_keep_what_stands_beside_the_time(tmp_path):
    entry = {"stats": {"median": 0.0025}, "extra_info": {"group": "g", "rival": "fused"}}
    (tmp_path / "b.json").write_text(json.dumps({"benchmarks": [entry]}))
    expected = {"group": "g", "rival": "fused", "median_ms": 2.5}
    assert gpu_check.benchmarks(tmp_path / "b.json") == [expected]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a device")
def test_without_a_device_it_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--json", str(tmp_path / "gpu.json")])
    assert gpu_check.main() == 0
    assert capsys.readouterr().out == "gpu_check: skipped, no CUDA device\n"
    assert not (tmp_path / "gpu.json").exists()


@pytest.mark.parametrize("rival", ["eager", "fused"])
def test_a_rivals_step_is_that_of_the_case(rival):
    case = CASES[0]
    leaves = case.on("cpu", torch.float32)
    output, *grads = bench_gpu.step_of(case, leaves, rival)()
    expected = case.results(leaves, "reference")
    bench_gpu.assert_equal([output, *grads], list(expected.values()))
