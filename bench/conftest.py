# SPDX-License-Identifier: Apache-2.0
"""What every benchmark shares: pinned threads, the machine's own limits, facts beside each time.

Each case runs three rivals in one process and one group: "eager" (plain modules, NCHW, as the
originals ship them), "eager-channels_last" and "fused". Their results are compared once before
anything is timed.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import darts_fast


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--threads",
        type=int,
        default=os.cpu_count(),
        help="threads of every benchmark (default: all processors)",
    )


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """Keeps the processor's name and leaves out the machine's."""
    cpu = machine_info.get("cpu", {})
    machine_info.clear()
    machine_info.update(cpu=cpu.get("brand_raw"), processors=os.cpu_count())


def median_seconds(function: Callable[[], object], rounds: int = 7) -> float:
    """Median wall time of a call, after one that warms up."""
    function()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@pytest.fixture(scope="session", autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    count: int = request.config.getoption("--threads")
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield count
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def gemm_gflops(threads: int) -> float:
    """The rate of a 1024 x 1024 x 1024 product in single precision, GFLOP/s."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    return 2 * 1024**3 / median_seconds(lambda: a @ b, rounds=15) / 1e9


@pytest.fixture(scope="session")
def copy_gbytes_per_s(threads: int) -> float:
    """The rate of a copy far larger than the caches, bytes read and written, GB/s."""
    source = torch.randn(32 * 1024**2)
    target = torch.empty_like(source)
    return 2 * source.nbytes / median_seconds(lambda: target.copy_(source)) / 1e9


@pytest.fixture
def measure(
    benchmark: Any, gemm_gflops: float, copy_gbytes_per_s: float, threads: int
) -> Callable[..., None]:
    """Times `function` and stores its work beside the time.

    Arguments: group and rival of the case; flop and nbytes, the operations and the bytes to and
    from memory that the case needs at least; rounds.
    """

    def run(
        function: Callable[[], object],
        *,
        group: str,
        rival: str,
        flop: float,
        nbytes: float | None = None,
        rounds: int = 9,
    ) -> None:
        benchmark.group = group
        benchmark.pedantic(function, rounds=rounds, warmup_rounds=1)
        seconds = benchmark.stats.stats.median
        benchmark.extra_info.update(
            group=group,
            rival=rival,
            threads=threads,
            cpu_capability=darts_fast.cpu_capability(),
            torch=torch.__version__,
            gflops=flop / seconds / 1e9,
            share_of_gemm=flop / seconds / 1e9 / gemm_gflops,
            gemm_gflops=gemm_gflops,
            copy_gbytes_per_s=copy_gbytes_per_s,
        )
        if nbytes is not None:
            benchmark.extra_info.update(
                gbytes_per_s=nbytes / seconds / 1e9,
                share_of_copy=nbytes / seconds / 1e9 / copy_gbytes_per_s,
            )

    return run
