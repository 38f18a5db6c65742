# SPDX-License-Identifier: Apache-2.0
"""The CUDA ops on a device beside their rivals: eager, channels_last, a CUDA graph, torch.compile.

The large cases of tests/gpu_cases.py that have kernels in this build, forward and backward. Times
are taken between two synchronisations. "fused" and "eager" are launched call by call, "... graph"
replays a captured graph. `gbytes_per_s` counts the leaves and their gradients once each, the least
that a step must move; the copy rate of the device stands beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from gpu_cases import LARGE, GpuCase, Leaves

from darts_fast.backend import use_backend

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
RIVALS = ("eager", "eager-channels_last", "eager graph", "compiled", "fused", "fused graph")


def step_of(case: GpuCase, leaves: Leaves, rival: str) -> Callable[[], list[Tensor]]:
    """Forward and backward of a case by a rival, launched call by call."""
    backend = "fused" if rival.startswith("fused") else "reference"
    call = torch.compile(case.call) if rival == "compiled" else case.call
    with use_backend(backend):
        gradient = case.gradient_like(call(leaves))

    def step() -> list[Tensor]:
        with use_backend(backend):
            output = call(leaves)
            grads = torch.autograd.grad(
                output, list(leaves.values()), gradient, allow_unused=True, materialize_grads=True
            )
        return [output, *grads]

    return step


def captured(step: Callable[[], list[Tensor]]) -> Callable[[], None]:
    """A replay of `step` as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def copy_rate() -> float:
    """Bytes read and written by a large copy, GB/s."""
    source = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    target.copy_(source)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(20):
        target.copy_(source)
    end.record()
    end.synchronize()
    return 20 * 2 * source.numel() / start.elapsed_time(end) / 1e6


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("name", LARGE)
def test_forward_and_backward(benchmark: Any, name: str, rival: str) -> None:
    case = LARGE[name]()
    missing = case.missing_kernels()
    if missing:
        pytest.skip(f"this build has no CUDA kernel of {', '.join(missing)}")
    leaves = case.on("cuda", torch.float32)
    if rival == "eager":
        leaves = {n: x.detach().contiguous().requires_grad_() for n, x in leaves.items()}
    step = step_of(case, leaves, rival)
    if rival != "fused":
        assert_equal(step(), step_of(case, leaves, "fused")())
    run = captured(step) if rival.endswith("graph") else step
    torch.cuda.synchronize()

    def timed() -> None:
        run()
        torch.cuda.synchronize()

    benchmark.group = f"{name} of DARTS, C = 16, 32x32, batch 64"
    benchmark.pedantic(timed, rounds=30, warmup_rounds=5)
    nbytes = 2 * sum(x.nbytes for x in leaves.values())
    benchmark.extra_info.update(
        group=benchmark.group,
        rival=rival,
        nbytes=nbytes,
        gbytes_per_s=nbytes / benchmark.stats.stats.median / 1e9,
        copy_gbytes_per_s=copy_rate(),
    )


def assert_equal(actual: list[Tensor], expected: list[Tensor]) -> None:
    for got, wanted in zip(actual, expected, strict=True):
        scale = wanted.abs().max().item()
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3 * scale)
