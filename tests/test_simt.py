# SPDX-License-Identifier: Apache-2.0
"""The emulation of CUDA in tests/simt finds planted bugs, and finds none in their correct twins."""

from __future__ import annotations

import math
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from simt_build import ROOT, SANITIZER_OPTIONS, Build, build_program, missing_tools
from simulator import Order

pytestmark = pytest.mark.skipif(
    bool(missing_tools()), reason=f"the emulation is built with {', '.join(missing_tools())}"
)

SCHEDULES = [(Order.ASCENDING, 0), (Order.DESCENDING, 0), *((Order.SHUFFLED, i) for i in range(4))]
PLANTED = ROOT / "tests/simt/planted.cpp"

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a case of planted.cpp in a build, which is made when it is first asked for."""
    programs: dict[Build, Path] = {}

    def run(
        case: str, build: Build = Build.PLAIN, order: Order = Order.SHUFFLED, seed: int = 0
    ) -> subprocess.CompletedProcess[str]:
        if build not in programs:
            programs[build] = build_program(PLANTED, tmp_path_factory.mktemp(build.value), build)
        command = [programs[build], case, str(int(order)), str(seed)]
        environment = {**os.environ, **SANITIZER_OPTIONS}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    return run


def results(run: Run, case: str) -> list[float]:
    done = [run(case, order=order, seed=seed) for order, seed in SCHEDULES]
    assert all(d.returncode == 0 for d in done), done[0].stderr
    return [float(d.stdout) for d in done]


INPUT = [(i % 7 + 1) * (1 if i % 2 == 0 else -2) for i in range(192)]


def weighted(out: list[float]) -> float:
    return sum((i + 1) * value for i, value in enumerate(out))


def product() -> list[float]:
    """[16, 8], row by row: sums over k of A[row][k] B[k][column]; B lies column by column."""
    elements = [INPUT[i % 192] for i in range(256)]
    return [
        sum(elements[16 * row + k] * elements[2 * (16 * column + k) % 192] for k in range(16))
        for row in range(16)
        for column in range(8)
    ]


CORRECT = {
    "block_sum": weighted([sum(INPUT[:96]), sum(INPUT[96:])]),
    "warp_reverse": weighted([INPUT[i ^ 31] for i in range(96)]),
    "barrier": weighted(INPUT[:96]),
    "shuffle": weighted([INPUT[i ^ 1] for i in range(96)]),
    "half_warps": weighted([sum(INPUT[i // 16 * 16 : i // 16 * 16 + 16]) for i in range(96)]),
    "shuffle_widths": weighted([1] * 96),
    "votes": weighted([1] * 96),
    "product": weighted(product()),
    "sum_of_threads": sum(INPUT[:96]),
    "sum_of_blocks": sum(INPUT[:96]),
    "last_block": sum(INPUT[:96]) + sum((97 + i) * value for i, value in enumerate(INPUT[:96])),
    "written": weighted(INPUT[:96]),
    "copy": weighted(INPUT),
}


@pytest.mark.parametrize("case", CORRECT)
def test_correct_kernels_give_one_result_in_every_order(run, case):
    assert results(run, case) == [CORRECT[case]] * len(SCHEDULES)


@pytest.mark.parametrize("build", [Build.ADDRESS, Build.THREAD, Build.COUNT])
@pytest.mark.parametrize("case", CORRECT)
def test_correct_kernels_pass_every_check(run, case, build):
    done = run(case, build)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split("\n")[0]) == CORRECT[case]


# Planted bug -> its correct twin, and what finds it; in the plain build also by results that are
# not those of the twin. Accesses that are out of bounds or not aligned may crash elsewhere too, by
# luck: only the address sanitizer is held to find them.
SYNCHRONISATION = {*Build}  # the scheduler of every build reports it
FOUND_BY = {
    "missing_barrier": ("block_sum", {Build.PLAIN, Build.THREAD}),
    "missing_syncwarp": ("warp_reverse", {Build.PLAIN, Build.THREAD}),
    "unsynchronised_sum": ("sum_of_threads", {Build.THREAD}),
    "blocks_that_write": ("sum_of_blocks", {Build.COUNT}),
    "block_that_reads": (None, {Build.COUNT}),
    "no_fence_before": ("last_block", {Build.COUNT}),
    "no_fence_behind": ("last_block", {Build.COUNT}),
    "no_barrier_before": ("last_block", {Build.COUNT}),
    "barrier_after_return": ("barrier", SYNCHRONISATION),
    "barrier_at_two_lines": ("barrier", SYNCHRONISATION),
    "absent_lanes": ("shuffle", SYNCHRONISATION),
    "absent_factors": ("product", SYNCHRONISATION),
    "product_at_two_lines": ("product", SYNCHRONISATION),
    "swapped_factors": ("product", {Build.PLAIN}),
    "shared_out_of_bounds": ("block_sum", {Build.ADDRESS}),
    "global_out_of_bounds": ("copy", {Build.ADDRESS}),
    "misaligned": ("copy", {Build.ADDRESS}),
}
BY_LUCK = {"shared_out_of_bounds", "global_out_of_bounds", "misaligned"}


@pytest.mark.parametrize("build", [*Build])
@pytest.mark.parametrize("bug", FOUND_BY)
def test_what_finds_a_planted_bug(run, bug, build):
    twin, found_by = FOUND_BY[bug]
    if bug in BY_LUCK and build not in found_by:
        pytest.skip("found by luck only")
    orders = SCHEDULES if build is Build.PLAIN else SCHEDULES[-1:]
    done = [run(bug, build, order, seed) for order, seed in orders]
    if build is Build.PLAIN:
        wanted = "0" if twin is None else f"{CORRECT[twin]:.17g}"
        found = any(d.returncode != 0 or float(d.stdout) != float(wanted) for d in done)
    else:
        found = any(d.returncode != 0 for d in done)
    assert found is (build in found_by), done[0].stderr


@pytest.mark.parametrize(
    ("case", "twin"), [("missing_barrier", "block_sum"), ("missing_syncwarp", "warp_reverse")]
)
def test_a_missing_barrier_changes_the_result(run, case, twin):
    # A thread reads before another has written: NaN. One fixed order alone could miss it.
    found = results(run, case)
    shuffled = found[2:]
    assert all(value != CORRECT[twin] for value in shuffled)
    assert any(value != CORRECT[twin] for value in found[:2])


def test_unwritten_shared_memory_is_nan(run):
    assert all(math.isnan(value) for value in results(run, "unwritten"))


def line_of(text: str, occurrence: int = 0) -> int:
    lines = PLANTED.read_text().splitlines()
    return [number for number, line in enumerate(lines, 1) if text in line][occurrence]


@pytest.mark.parametrize(
    ("case", "kernel", "message"),
    [
        (
            "barrier_after_return",
            "divergent<(Bug)1>",
            r"64 thread\(s\) wait at __syncthreads, .*; 32 have returned",
        ),
        (
            "barrier_at_two_lines",
            "divergent<(Bug)2>",
            r"32 thread\(s\) wait at __syncthreads, .*; 64 thread\(s\) wait at __syncthreads",
        ),
        (
            "absent_lanes",
            "shuffle<(Bug)1>",
            r"the mask names lane \d+, which has returned|"
            r"51 thread\(s\) wait at a warp operation, .*; 45 have returned",
        ),
        (
            "absent_factors",
            "product<(Bug)1>",
            r"the mask names lane \d+, which has returned|"
            r"17 thread\(s\) wait at a warp operation, .*; 15 have returned",
        ),
        (
            "product_at_two_lines",
            "product<(Bug)3>",
            r"16 thread\(s\) wait at a warp operation, .*; 16 thread\(s\) wait at a warp operation",
        ),
        ("partial_warp", "shuffle<(Bug)0>", "the mask names lane 28, which does not exist"),
        ("lane_outside_its_mask", "shuffle<(Bug)2>", r"lane \d*[13579] is not in its own mask"),
        (
            "masks_that_differ",
            "half_warps<(Bug)1>",
            r"48 thread\(s\) wait at a warp operation, .*, mask 0xffffffff; 48 have returned",
        ),
    ],
)
def test_synchronisation_errors_are_reported(run, case, kernel, message):
    for order, seed in SCHEDULES:
        done = run(case, order=order, seed=seed)
        assert done.returncode == 1
        assert done.stderr.startswith(f"simt: {kernel}, block (0, 0, 0): ")
        assert re.search(message, done.stderr), done.stderr


def test_reports_name_the_line(run):
    done = run("barrier_at_two_lines")
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
def test_launches_beyond_the_limits_are_refused(run, case, grid, block):
    done = run(case)
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
def test_the_address_sanitizer_names_the_line(run, case, message, line):
    done = run(case, Build.ADDRESS, Order.ASCENDING)
    assert done.returncode != 0
    assert message in done.stderr
    assert f"planted.cpp:{line_of(line)}" in done.stderr


@pytest.mark.parametrize(
    ("case", "line"),
    [
        ("missing_barrier", "sum += from[i];"),
        ("missing_syncwarp", "shared[thread ^ 31]"),
        ("unsynchronised_sum", "out[0] += value;"),
    ],
)
def test_the_thread_sanitizer_names_the_line(run, case, line):
    done = run(case, Build.THREAD, Order.ASCENDING)
    assert "ThreadSanitizer: data race" in done.stderr
    assert f"planted.cpp:{line_of(line)}" in done.stderr


@pytest.mark.parametrize(
    ("case", "kernel", "line"),
    [
        ("blocks_that_write", "sum_of_blocks<(Bug)1>", line_of("out[0] += value;", 1)),
        ("block_that_reads", "sum_of_blocks<(Bug)2>", line_of("out[1 + blockIdx.x]")),
    ],
)
def test_conflicts_between_blocks_name_kernel_and_place(run, case, kernel, line):
    done = run(case, Build.COUNT, Order.ASCENDING)
    found = re.fullmatch(
        rf"simt: {re.escape(kernel)}: block \(1, 0, 0\) reads a byte that another block of the "
        r"launch has written, at (\S+)\+(0x[0-9a-f]+)\n",
        done.stderr,
    )
    assert found, done.stderr
    where = subprocess.run(
        ["addr2line", "-e", *found.groups()], capture_output=True, text=True, check=True
    )
    assert where.stdout.strip().endswith(f"planted.cpp:{line}")


def test_bytes_are_counted(run):
    read = run("copy", Build.COUNT).stdout.splitlines()[1].split("\t")
    # 48 threads move 16 bytes each way; 768 bytes touch 24 sectors, or 25 where none begins.
    assert read[:4] == ["copy<(Bug)0>", "1", "96", "768"]
    assert int(read[4]) in (768, 800)
    assert read[5:7] == ["768", "768"]
    assert int(read[7]) in (768, 800)
    assert read[8:] == ["768", "0", "0"]


def test_bytes_of_blocks_and_of_shared_memory(run):
    counts = run("block_sum", Build.COUNT).stdout.splitlines()[1].split("\t")
    # Two blocks of 96 threads: each reads its 384 bytes, shares them, sums them, writes one float.
    # The floats are neighbours: two sectors where one was touched twice, eight bytes of memory.
    assert counts[:4] == ["block_sum<(Bug)0>", "2", "192", "768"]
    assert counts[5] == "768"
    assert counts[6:] == ["8", "64", "8", "768", "768"]
