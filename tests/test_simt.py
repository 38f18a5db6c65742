# SPDX-License-Identifier: Apache-2.0
"""The emulation of CUDA in tests/simt finds planted bugs, and finds none in their correct twins."""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from simulator import ROOT, Order, build_program, missing_tools

pytestmark = pytest.mark.skipif(
    bool(missing_tools()), reason=f"the emulation is built with {', '.join(missing_tools())}"
)

SCHEDULES = [(Order.ASCENDING, 0), (Order.DESCENDING, 0), *((Order.SHUFFLED, i) for i in range(4))]
PLANTED = ROOT / "tests/simt/planted.cpp"

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def runner(program: Path) -> Run:
    def run(
        case: str, order: Order = Order.SHUFFLED, seed: int = 0
    ) -> subprocess.CompletedProcess[str]:
        command = [program, case, str(int(order)), str(seed)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return runner(build_program(PLANTED, tmp_path_factory.mktemp("planted"), sanitize=False))


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return runner(build_program(PLANTED, tmp_path_factory.mktemp("sanitized"), sanitize=True))


def results(run: Run, case: str) -> list[float]:
    done = [run(case, order, seed) for order, seed in SCHEDULES]
    assert all(d.returncode == 0 for d in done), done[0].stderr
    return [float(d.stdout) for d in done]


INPUT = [(i % 7 + 1) * (1 if i % 2 == 0 else -2) for i in range(192)]


def weighted(out: list[float]) -> float:
    return sum((i + 1) * value for i, value in enumerate(out))


CORRECT = {
    "block_sum": weighted([sum(INPUT[:96]), sum(INPUT[96:])]),
    "warp_reverse": weighted([INPUT[i ^ 31] for i in range(96)]),
    "barrier": weighted(INPUT[:96]),
    "shuffle": weighted([INPUT[i ^ 1] for i in range(96)]),
    "half_warps": weighted([sum(INPUT[i // 16 * 16 : i // 16 * 16 + 16]) for i in range(96)]),
    "shuffle_widths": weighted([1] * 96),
    "written": weighted(INPUT[:96]),
    "copy": weighted(INPUT),
}


@pytest.mark.parametrize("case", CORRECT)
def test_correct_kernels_give_one_result_in_every_order(planted, case):
    assert results(planted, case) == [CORRECT[case]] * len(SCHEDULES)


@pytest.mark.parametrize("case", CORRECT)
def test_correct_kernels_pass_the_sanitizers(sanitized, case):
    done = sanitized(case)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == CORRECT[case]


@pytest.mark.parametrize(
    ("case", "twin"), [("missing_barrier", "block_sum"), ("missing_syncwarp", "warp_reverse")]
)
def test_a_missing_barrier_changes_the_result(planted, case, twin):
    # A thread reads before another has written: NaN. One fixed order alone could miss it.
    found = results(planted, case)
    shuffled = found[2:]
    assert all(value != CORRECT[twin] for value in shuffled)
    assert any(value != CORRECT[twin] for value in found[:2])


def test_unwritten_shared_memory_is_nan(planted):
    assert all(math.isnan(value) for value in results(planted, "unwritten"))


def line_of(text: str, occurrence: int = 0) -> int:
    lines = PLANTED.read_text().splitlines()
    return [number for number, line in enumerate(lines, 1) if text in line][occurrence]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("barrier_after_return", r"64 thread\(s\) wait at __syncthreads, .*; 32 have returned"),
        (
            "barrier_at_two_lines",
            r"32 thread\(s\) wait at __syncthreads, .*; 64 thread\(s\) wait at __syncthreads",
        ),
        (
            "absent_lanes",
            r"the mask names lane \d+, which has returned|"
            r"51 thread\(s\) wait at a warp operation, .*; 45 have returned",
        ),
        ("partial_warp", "the mask names lane 28, which does not exist"),
        ("lane_outside_its_mask", r"lane \d*[13579] is not in its own mask"),
        (
            "masks_that_differ",
            r"48 thread\(s\) wait at a warp operation, .*, mask 0xffffffff; 48 have returned",
        ),
    ],
)
def test_synchronisation_errors_are_reported(planted, case, message):
    for order, seed in SCHEDULES:
        done = planted(case, order, seed)
        assert done.returncode == 1
        assert done.stderr.startswith("simt: block (0, 0, 0): ")
        assert re.search(message, done.stderr), done.stderr


def test_reports_name_the_line(planted):
    done = planted("barrier_at_two_lines")
    first = line_of("__syncthreads();", 1)
    assert f"planted.cpp:{first};" in done.stderr
    assert f"planted.cpp:{first + 2};" in done.stderr


@pytest.mark.parametrize(
    ("case", "grid", "block"),
    [
        ("block_too_large", (1, 1, 1), (1025, 1, 1)),
        ("grid_too_large", (1, 65536, 1), (32, 1, 1)),
        ("parameters_too_large", (1, 1, 1), (32, 1, 1)),
    ],
)
def test_launches_beyond_the_limits_are_refused(planted, case, grid, block):
    done = planted(case)
    assert done.returncode == 1
    assert re.match(rf"{case}: the launch at \S*planted.cpp:\d+ failed, ", done.stderr)
    expected = f"invalid configuration argument, for a grid of {grid} blocks of {block} threads"
    assert expected in done.stderr


@pytest.mark.parametrize(
    ("case", "message", "line"),
    [
        ("shared_out_of_bounds", "global-buffer-overflow", "sum += from[i];"),
        ("global_out_of_bounds", "heap-buffer-overflow", "= *from;"),
        ("misaligned", "misaligned address", "= *from;"),
    ],
)
def test_sanitizers_see_device_memory(sanitized, case, message, line):
    done = sanitized(case, Order.ASCENDING)
    assert done.returncode != 0
    assert message in done.stderr
    assert f"planted.cpp:{line_of(line)}" in done.stderr
