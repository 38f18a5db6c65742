# SPDX-License-Identifier: Apache-2.0
"""What the README says is true: its code runs, its flags exist, its numbers come from results."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest

from darts_fast.cli.search import search

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "bench" / "results"

pytestmark = pytest.mark.skipif(not README.is_file(), reason="needs the checkout")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), flags=re.DOTALL)


def search_commands() -> list[list[str]]:
    """The arguments of every `darts-fast search` in the shell blocks."""
    found = []
    for block in blocks("bash"):
        for part in block.replace("\\\n", " ").split("&&"):
            words = shlex.split(part)
            if "search" in words[:2] and words[0].endswith("darts-fast"):
                found.append(words[2:])
    return found


@pytest.mark.parametrize("code", blocks("python") if README.is_file() else [])
def test_python_examples_run(code):
    exec(compile(code, "README.md", "exec"), {})


def test_search_commands_have_flags_that_exist():
    commands = search_commands()
    assert len(commands) >= 2
    for arguments in commands:
        context = search.make_context("search", list(arguments), resilient_parsing=False)
        assert context.params["derive"]


def test_ci_runs_the_second_command():
    assert "pytest" in blocks("bash")[1]
    assert "README.md" in (ROOT / ".ci" / "run").read_text()


def test_races_are_those_of_the_result_file():
    text = README.read_text()
    rows = json.loads((RESULTS / "race-cifar10-small.json").read_text())["rows"]
    names = ("wrong", "same", "exhausted", "undecided", "images")
    found = [" | ".join(f"{100 * row[name]:.1f} %" for name in names) for row in rows]
    assert sum(f"| {shares} |" in text for shares in found) >= 4


def test_accuracies_are_those_of_the_result_files():
    text = README.read_text()
    for name in ("digits", "cifar10-small"):
        result = json.loads((RESULTS / f"{name}.json").read_text())
        assert f"bench/results/{name}.json" in text
        for row in result["derived"]:
            assert f"{row['test_accuracy']:.2f}" in text, (name, row["selection"])


def load_script(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def load_tables():
    return load_script(ROOT / "bench" / "tables.py")


def test_tables_are_those_of_the_benchmark_file():
    tables = load_tables()
    recorded = json.loads((RESULTS / "benchmarks.json").read_text())
    for path in tables.DOCUMENTS:
        text = path.read_text()
        assert text.count("<!-- bench/tables.py: ") == text.count("<!-- end -->") >= 2
        assert tables.filled(text, recorded) == text, f"{path.name}: run python bench/tables.py"


def test_a_table_is_made_from_a_result():
    def benchmark(rival, median, **extra):
        return {
            "stats": {"median": median},
            "extra_info": {"group": "step", "rival": rival, "headline": True, **extra},
        }

    done = {"flop": 6e9, "done": 8e9, "nbytes": 2e9, "gemm_gflops": 80.0, "copy_gbytes_per_s": 40.0}
    measured = {"gflops": 30.0, "share_of_gemm": 0.375, "facts": {"of its CPU time": 1.0625}}
    recorded = {
        "benchmarks": [
            benchmark("eager", 1.0),
            benchmark("fused", 0.2, **done, **measured),
        ]
    }
    tables = load_tables()
    place = "<!-- bench/tables.py: {} -->\nold\n<!-- end -->\n"
    document = "".join(place.format(name) for name in ("headlines", "roofline"))
    filled = tables.filled(document, recorded)
    assert "old" not in filled
    assert "| step | 200.0 ms | 5.0 | - | 30.0 | 0.38 | 1.06 of its CPU time |" in filled
    # 8 GFLOP at 80 GFLOP/s take longer than 2 GB at 40 GB/s.
    assert "| step | 6.00 | 8.00 | 2.000 | 100.0 | 50.0 | 200.0 | 0.50 |" in filled
    with pytest.raises(ValueError, match="a table must be one of"):
        tables.filled(place.format("missing"), recorded)


def test_scaling_is_that_of_the_result_file():
    text = (ROOT / "docs" / "scaling.md").read_text()
    result = json.loads((RESULTS / "scaling.json").read_text())
    assert result["same removals"]
    assert f"{result['bytes of a weight step']:,} bytes" in text
    for name, row in (("step", "search step"), ("removals", "removals")):
        times = result[name]
        cells = []
        for unit in ("seconds", "CPU seconds"):
            alone, shared = times[f"alone {unit}"], times[f"shared {unit}"]
            cells += [alone, shared, alone / shared]
        assert re.search(f"{row}.*" + r" \| ".join(f"{value:.2f}" for value in cells), text), name


def test_the_nasbench201_study_is_that_of_the_result_files():
    study = load_script(ROOT / "bench" / "experiments" / "nasbench201.py")
    page = (ROOT / "bench" / "experiments" / "README.md").read_text()
    for size in (16, 32):
        seeds = json.loads((RESULTS / f"nasbench201-{size}.json").read_text())["seeds"]
        assert study.table_of(seeds) in page
        assert study.trajectory_of(seeds) in page

    seeds = json.loads((RESULTS / "nasbench201-16.json").read_text())["seeds"].values()
    text = README.read_text()
    for name in ("magnitude", "sequential-loss"):
        found = [seed["darts"]["selections"][name]["accuracy"]["cifar10"] for seed in seeds]
        assert f"{sum(found) / len(found):.2f}" in text
        assert f"{min(found):.2f}" in text
