# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels on a device: values, gradients, graphs, streams, offsets, memory.

Needs a device and a build with CUDA: `make -C bench gpu-check` runs this and the benchmarks.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from closeness import assert_close
from gpu_cases import CASES, GpuCase, Leaves, has_cuda_kernel
from torch import Tensor

from darts_fast.functional import node_sum

each_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


def compare_with_reference(case: GpuCase, device: str) -> None:
    """Outputs and gradients in float32 on the device, under the closeness policy.

    The truth is plain PyTorch in float64 on the CPU, of the same numbers rounded to float32.
    """
    leaves = case.on(device, torch.float32)
    exact = {n: x.detach().cpu().double().requires_grad_() for n, x in leaves.items()}
    actual = case.results(leaves, "fused")
    eager = case.results(leaves, "reference")
    truth = case.results(exact, "reference")
    compare = {"output": [actual["output"], eager["output"], truth["output"]]}
    # Of many small tensors there is always one for which eager was lucky: all together.
    names = [name for name in actual if name != "output"]
    scale = {name: truth[name].abs().max().clamp_min(1e-30) for name in names}
    compare["gradients"] = [
        torch.cat(
            [(found[name].cpu() / scale[name].to(found[name].dtype)).flatten() for name in names]
        )
        for found in (actual, eager, truth)
    ]
    for name, tensors in compare.items():
        value, plain, wanted = (x.cpu() for x in tensors)
        assert_close(name, value, plain, wanted, gradient=name == "gradients")


@each_case
def test_the_cases_hold_on_the_cpu(case):
    compare_with_reference(case, "cpu")


@pytest.fixture
def kernels(request: pytest.FixtureRequest) -> None:
    """Skips a case whose ops have no CUDA kernel in this build."""
    missing = request.getfixturevalue("case").missing_kernels()
    if missing:
        pytest.skip(f"this build has no CUDA kernel of {', '.join(missing)}")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def bits_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.gpu
@pytest.mark.usefixtures("kernels")
@each_case
class TestOnDevice:
    """What every op must do there."""

    def test_values_and_gradients(self, case: GpuCase) -> None:
        compare_with_reference(case, "cuda")

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_autocast(self, case: GpuCase, dtype: torch.dtype) -> None:
        leaves = case.on("cuda", torch.float32)
        full = case.results(leaves, "fused")
        with torch.autocast("cuda", dtype):
            low = case.results(leaves, "fused")
        assert low["output"].dtype == dtype
        for names in (["output"], [name for name in full if name != "output"]):
            value, exact = (
                torch.cat([x[n].double().flatten() for n in names]) for x in (low, full)
            )
            assert (value - exact).norm() <= 8 * torch.finfo(dtype).eps * exact.norm()

    def test_gradcheck(self, case: GpuCase) -> None:
        leaves = case.on("cuda", torch.float64)
        if sum(x.numel() for x in leaves.values()) > 20_000:
            pytest.skip("too large for finite differences")
        names, values = list(leaves), list(leaves.values())

        def call(*given: Tensor) -> Tensor:
            return case.call(dict(zip(names, given, strict=True)))

        torch.autograd.gradcheck(call, values, fast_mode=True)

    def test_equal_calls_give_equal_bits(self, case: GpuCase) -> None:
        leaves = case.on("cuda", torch.float32)
        first = case.results(leaves, "fused")
        assert all(bits_equal(first, case.results(leaves, "fused")) for _ in range(5))

    def test_nothing_synchronises(self, case: GpuCase) -> None:
        leaves = case.on("cuda", torch.float32)
        gradient = case.gradient_like(case.call(leaves))
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            torch.autograd.grad(
                case.call(leaves), list(leaves.values()), gradient, allow_unused=True
            )
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_a_captured_graph_follows_its_inputs(self, case: GpuCase) -> None:
        leaves = case.on("cuda", torch.float32)
        gradient = case.gradient_like(case.call(leaves))

        def step() -> list[Tensor]:
            output = case.call(leaves)
            grads = torch.autograd.grad(
                output, list(leaves.values()), gradient, allow_unused=True, materialize_grads=True
            )
            return [output, *grads]

        replay, captured = capture(step)
        with torch.no_grad():
            for leaf in leaves.values():
                leaf.mul_(1.25)
        replay()
        torch.cuda.synchronize()
        for got, wanted in zip(captured, step(), strict=True):
            assert torch.equal(got, wanted)

    def test_a_stream_of_its_own(self, case: GpuCase) -> None:
        leaves = case.on("cuda", torch.float32)
        expected = case.results(leaves, "fused")
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        late: Leaves = {}
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)  # the inputs come late: a kernel elsewhere reads nothing
            late = {name: x.detach().clone().requires_grad_() for name, x in leaves.items()}
            actual = case.results(late, "fused")
        stream.synchronize()
        assert bits_equal(expected, actual)

    def test_memory_comes_back(self, case: GpuCase) -> None:
        leaves = case.on("cuda", torch.float32)
        case.results(leaves, "fused")
        before = torch.cuda.memory_allocated()
        for _ in range(3):
            case.results(leaves, "fused")
        assert torch.cuda.memory_allocated() == before

    def test_takes_no_more_memory_than_plain_pytorch(self, case: GpuCase) -> None:
        leaves = case.on("cuda", torch.float32)
        peaks = []
        for backend in ("fused", "reference"):
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            case.results(leaves, backend)
            peaks.append(torch.cuda.max_memory_allocated() - before)
        # Scratch of small calls is rounded up to the allocator's blocks.
        assert peaks[0] <= peaks[1] + 2**20, f"{peaks[0]} bytes against {peaks[1]}"


def capture(step: Callable[[], list[Tensor]]) -> tuple[Callable[[], None], list[Tensor]]:
    """A CUDA graph of `step`: its replay, and the tensors that the replay writes."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    return graph.replay, captured


@pytest.mark.gpu
@pytest.mark.skipif(not has_cuda_kernel("node_sum"), reason="this build has no CUDA kernels")
def test_offsets_beyond_32_bits():
    # One map of more than 2^31 elements; its last image must be read and written.
    shape = (2**17 + 1, 16, 32, 32)
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("needs 40 GB of device memory")
    y = torch.zeros(shape, device="cuda").to(memory_format=torch.channels_last)
    y[-1] = 3
    out = node_sum([y], torch.full((1,), 2.0, device="cuda"), "none").node
    assert out[-1].eq(6).all()
    assert out[:-1].count_nonzero() == 0


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_device_of_the_tensors_is_used():
    y = torch.randn(2, 16, 8, 8)
    weights = torch.ones(1)
    with torch.cuda.device(0):
        out = node_sum([y.to("cuda:1")], weights.to("cuda:1"), "batch").node
    assert out.device == torch.device("cuda:1")
    torch.testing.assert_close(out.cpu(), node_sum([y], weights, "batch").node)
