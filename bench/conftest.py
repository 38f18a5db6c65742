# SPDX-License-Identifier: Apache-2.0
"""What every benchmark shares: pinned threads, the machine's own limits, facts beside each time.

Each case runs three rivals in one process and one group: "eager" (plain modules, NCHW, as the
originals ship them), "eager-channels_last" and "fused". Their results are compared once before
anything is timed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timing
import torch

import darts_fast

SMOKE_BATCH = 2

# The supernets of other code bases (`originals`). Behind bench, whose modules come first.
sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

# The order of the run, and so of the tables. Peak memory comes before this process has grown: an
# eager step takes 9 GB in a process of its own.
FILES = (
    *("memory", "supernet", "alpha_step", "projected", "nasbench201", "threads", "capability"),
    *("accelerate", "removals", "selection", "search_epoch", "methods"),
    *("edge", "conv_blocks", "node_sum"),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--threads",
        type=int,
        default=os.cpu_count(),
        help="threads of every benchmark (default: all processors)",
    )
    parser.addoption(
        "--smoke",
        action="store_true",
        help=f"one round at batch {SMOKE_BATCH}: shows that the benchmarks run, times mean nothing",
    )


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """Keeps the processor's name and leaves out the machine's."""
    cpu = machine_info.get("cpu", {})
    machine_info.clear()
    machine_info.update(cpu=cpu.get("brand_raw"), processors=os.cpu_count())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {f"bench_{name}": place for place, name in enumerate(FILES)}
    items.sort(key=lambda item: order.get(item.path.stem, -1))


@pytest.fixture(scope="session", autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    count: int = request.config.getoption("--threads")
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield count
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def smoke(request: pytest.FixtureRequest) -> bool:
    enabled: bool = request.config.getoption("--smoke")
    return enabled


@pytest.fixture
def batch(request: pytest.FixtureRequest, smoke: bool) -> int:
    """The batch size of the case, a parameter of the test."""
    size: int = request.param
    return SMOKE_BATCH if smoke else size


@pytest.fixture(scope="session")
def copy_gbytes_per_s(threads: int) -> float:
    return timing.copy_gbytes_per_s()


@pytest.fixture
def measure(
    benchmark: Any, smoke: bool, copy_gbytes_per_s: float, threads: int
) -> Callable[..., None]:
    """Times `function` and stores its work beside the time.

    Arguments:
        group, rival: of the case.
        flop: useful operations (two per multiply-add), the basis of GFLOP/s; None where they are
            not counted.
        done: operations that the kernels do, where they are more.
        nbytes: to and from memory.
        rounds: after `warmup` calls that are not timed.
        facts: name -> number, what else was measured; a name reads on after its number.
        headline: whether the row is one of the README's.
        value, unit: what to compare instead of the time, called after the rounds.
    """

    def run(
        function: Callable[[], object],
        *,
        group: str,
        rival: str,
        flop: float | None = None,
        done: float | None = None,
        nbytes: float | None = None,
        rounds: int = 9,
        warmup: int = 1,
        facts: dict[str, float] | None = None,
        headline: bool = False,
        value: Callable[[], float] | None = None,
        unit: str = "ms",
    ) -> None:
        benchmark.group = group
        # Beside the case, not once for the session: the rate moves with the machine's load.
        gemm = timing.gemm_gflops()
        benchmark.pedantic(
            function, rounds=1 if smoke else rounds, warmup_rounds=0 if smoke else warmup
        )
        gemm = (gemm + timing.gemm_gflops()) / 2
        benchmark.extra_info.update(
            group=group,
            rival=rival,
            threads=torch.get_num_threads(),
            omp_wait_policy=os.environ.get("OMP_WAIT_POLICY", "default"),
            cpu_capability=darts_fast.cpu_capability(),
            torch=torch.__version__,
            gemm_gflops=gemm,
            copy_gbytes_per_s=copy_gbytes_per_s,
            headline=headline,
        )
        if facts:
            benchmark.extra_info["facts"] = facts
        if value is not None:
            benchmark.extra_info.update(value=value(), unit=unit)
        if benchmark.disabled or value is not None:
            return
        seconds = benchmark.stats.stats.median
        if flop is not None:
            benchmark.extra_info.update(
                flop=flop,
                done=flop if done is None else done,
                gflops=flop / seconds / 1e9,
                share_of_gemm=flop / seconds / 1e9 / gemm,
            )
        if nbytes is not None:
            benchmark.extra_info.update(
                nbytes=nbytes,
                gbytes_per_s=nbytes / seconds / 1e9,
                share_of_copy=nbytes / seconds / 1e9 / copy_gbytes_per_s,
            )

    return run
