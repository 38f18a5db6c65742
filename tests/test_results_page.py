# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/results.md: what they say of runs by hand, and that the page has those of the
recorded runs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = ROOT / "bench" / "experiments" / "methods_page.py"
    spec = importlib.util.spec_from_file_location("methods_page", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(method: str, seed: int, accuracy: float, seconds: float) -> dict[str, Any]:
    names = ("cifar10", "cifar100", "ImageNet16-120")
    return {
        "method": method,
        "selection": "magnitude",
        "seed": seed,
        "accuracy": {name: accuracy - 20 * place for place, name in enumerate(names)},
        "skip_connections": seed,
        "seconds": {"search": seconds, "select": 0.5},
        "select_cpu_seconds": 0.25,
    }


RESULT: dict[str, Any] = {
    "settings": {"jobs": 2},
    "every_cell": {
        name: {"mean": 1.0, "median": 2.0, "best": 3.0}
        for name in ("cifar10", "cifar100", "ImageNet16-120")
    },
    "rows": [
        *(row("darts", seed, 80.0 + seed, 10.0) for seed in (1, 0, 2)),
        *(row("other", seed, 83.5 - seed, 30.0 + seed) for seed in (0, 1, 2)),
    ],
}


def test_tables_of_runs_by_hand(script: ModuleType) -> None:
    lines = script.tables(RESULT).splitlines()
    assert "| darts | 81.00 (80.00) |" in lines
    assert "| other | 82.50 (81.50) |" in lines
    assert "| other | +1.50 (2 of 3) |" in lines
    assert "| CIFAR-100 | 1.00 | 2.00 | 3.00 |" in lines
    every = (
        "| other | magnitude | 83.50 82.50 81.50 | 82.50 | 62.50 | 42.50 | 1.0 | 31 | 0.5 | 0.2 |"
    )
    assert every in lines


def test_a_page_without_its_marks_is_refused(script: ModuleType) -> None:
    page = f"a\n{script.BEGIN}\nold\n{script.END}\nb\n"
    made = script.page_with(page, RESULT)
    assert made.startswith(f"a\n{script.BEGIN}\n\nCIFAR-10")
    assert made.endswith(f"\n\n{script.END}\nb\n")
    assert "old" not in made
    assert script.page_with(made, RESULT) == made
    with pytest.raises(ValueError, match=r"must have .* and .* once each"):
        script.page_with("a", RESULT)


def test_the_page_has_the_recorded_runs(script: ModuleType) -> None:
    result = json.loads((ROOT / "bench" / "results" / "methods-nasbench201.json").read_text())
    page = (ROOT / "docs" / "results.md").read_text()
    assert script.page_with(page, result) == page
