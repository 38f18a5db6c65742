# SPDX-License-Identifier: Apache-2.0
"""Runs every test and benchmark that needs a CUDA device, and writes one file of results.

    python bench/gpu_check.py [--json bench/results/gpu.json]      # or: make -C bench gpu-check

Without a device it says so and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent


def run_pytest(*arguments: object) -> int:
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "gpu", *map(str, arguments)]
    return subprocess.run(command, check=False, cwd=ROOT).returncode


def outcomes(junit: Path) -> dict[str, Any]:
    """Counts of a JUnit file, and every test that failed or was skipped with its reason."""
    counts: Counter[str] = Counter()
    named: dict[str, str] = {}
    for case in ElementTree.parse(junit).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        problem = next(
            (child for child in case if child.tag in ("failure", "error", "skipped")), None
        )
        outcome = "passed" if problem is None else problem.tag
        counts[outcome] += 1
        if problem is not None:
            named[name] = f"{outcome}: {(problem.get('message') or '')[:300]}"
    return {"counts": dict(counts), "not_passed": named}


def device_facts() -> dict[str, Any]:
    """What the run was made on."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }


def benchmarks(recorded: Path) -> list[dict[str, Any]]:
    """Group, rival and what was recorded beside the median, of a pytest-benchmark file."""
    found = []
    for entry in json.loads(recorded.read_text())["benchmarks"]:
        milliseconds = 1e3 * entry["stats"]["median"]
        found.append({**entry["extra_info"], "median_ms": milliseconds})
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=ROOT / "bench/results/gpu.json")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu_check: skipped, no CUDA device")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        junit, recorded = Path(folder) / "tests.xml", Path(folder) / "benchmarks.json"
        tests = run_pytest("tests", f"--junitxml={junit}")
        timed = run_pytest("bench/bench_gpu.py", f"--benchmark-json={recorded}")
        record = {
            "device": device_facts(),
            "tests": outcomes(junit),
            "benchmarks": benchmarks(recorded) if recorded.exists() else [],
        }
    given.json.write_text(json.dumps(record, indent=1) + "\n")
    print(f"gpu_check: {record['tests']['counts']}, {len(record['benchmarks'])} benchmarks")
    return tests or timed


if __name__ == "__main__":
    sys.exit(main())
