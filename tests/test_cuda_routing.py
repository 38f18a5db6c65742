# SPDX-License-Identifier: Apache-2.0
"""Where calls with CUDA tensors go, shown with fake tensors: no device and no driver is needed.

Forwards only: torch without CUDA ends the process when autograd meets a CUDA tensor, fake or not.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from gpu_cases import CASES, GpuCase
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from darts_fast.functional import node_sum
from darts_fast.nn.fused_cell import runs_native

FAKE = "cuda:0"


class Recorded(TorchDispatchMode):
    """The native ops that were called, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.native: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "darts_fast":
            self.native.append(func._schema.name.partition("::")[2])
        return func(*args, **(kwargs or {}))


@pytest.fixture
def recorded() -> Iterator[Recorded]:
    with FakeTensorMode(allow_non_fake_inputs=True), Recorded() as mode:
        yield mode


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_functional_calls_go_to_the_native_op(case: GpuCase, recorded: Recorded) -> None:
    leaves = {name: x.detach() for name, x in case.on("cpu", torch.float32).items()}
    there = {name: x.to(FAKE) for name, x in leaves.items()}
    recorded.native.clear()
    with torch.no_grad():
        output = case.call(there)
    assert recorded.native == [case.ops[0]]
    assert str(output.device) == FAKE


def test_a_node_keeps_shape_layout_and_device(recorded: Recorded) -> None:
    maps = [torch.empty(6, 16, 5, 7, device=FAKE) for _ in range(3)]
    out = node_sum(maps, torch.empty(2, 3, device=FAKE), groups=2)
    assert out.node.shape == maps[0].shape
    assert out.node.is_contiguous(memory_format=torch.channels_last)
    assert out.mean.shape == out.var.shape == (2, 3, 16)
    assert {str(x.device) for x in out} == {FAKE}


def test_modules_take_kernels_on_the_cpu_only(recorded: Recorded) -> None:
    # Until kernels for whole cells are timed on a device, modules run there as plain PyTorch.
    assert runs_native(torch.empty(2, 3, 8, 8))
    assert not runs_native(torch.empty(2, 3, 8, 8, device=FAKE))
