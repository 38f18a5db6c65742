# SPDX-License-Identifier: Apache-2.0
"""What the README says is true: its code runs, its flags exist, its numbers come from results."""

from __future__ import annotations

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


def test_accuracies_are_those_of_the_result_files():
    text = README.read_text()
    for name in ("digits", "cifar10-small"):
        result = json.loads((RESULTS / f"{name}.json").read_text())
        assert f"bench/results/{name}.json" in text
        for row in result["derived"]:
            assert f"{row['test_accuracy']:.2f}" in text, (name, row["selection"])


def test_ratios_are_those_of_the_benchmark_file():
    recorded = json.loads((RESULTS / "benchmarks.json").read_text())["benchmarks"]
    text = README.read_text()
    medians = {
        (b["extra_info"]["group"], b["extra_info"]["rival"]): b["stats"]["median"] for b in recorded
    }
    groups = {group for group, _ in medians}
    assert groups
    for group in groups:
        fused = medians[group, "fused"]
        for rival in ("eager", "eager-channels_last"):
            ratio = f"{medians[group, rival] / fused:.1f}"
            row = next(line for line in text.splitlines() if group in line)
            assert f" {ratio} " in row, (group, rival, ratio)
