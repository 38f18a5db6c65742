# SPDX-License-Identifier: Apache-2.0
"""Where calls with CUDA tensors go, shown with fake tensors: no device and no driver is needed.

Forwards only: torch without CUDA ends the process when autograd meets a CUDA tensor, fake or not.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from gpu_cases import CASES, GpuCase
from pretended_device import There, move_there, pretended_device
from removal_cases import mixed_tables, small_batches, small_net
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from darts_fast.backend import use_backend, use_cuda_kernels
from darts_fast.functional import _library, node_sum
from darts_fast.nn import Cell, MixedOp
from darts_fast.nn.fused_cell import runs_native
from darts_fast.nn.nasbench201 import NAS201SearchCell
from darts_fast.selection.engine import MaskedEvaluation
from darts_fast.spaces import get_space

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


C = 8


def wide_cell(name: str) -> tuple[nn.Module, list[Tensor]]:
    """A module of C channels and what its forward takes, in float64."""
    torch.manual_seed(0)
    ops = get_space("s5").primitives["normal"][0]
    if name == "edge":
        module: nn.Module = MixedOp(C, 2, ops)
        arguments = [torch.randn(2, C, 8, 6), torch.rand(len(ops))]
    elif name == "nasbench201":
        space = get_space("nasbench201")
        settings = {"zero": "multiply", "affine": True, "track_running_stats": True}
        module = NAS201SearchCell(C, space.edges, space.primitives["cell"], **settings)
        arguments = [torch.randn(2, C, 8, 6), torch.rand(6, 5)]
    else:
        sizes = {"reduction": name == "reduction", "reduction_prev": True, "zero": "multiply"}
        module = Cell(2, 2, 6, 5, C, **sizes, primitives=[ops] * 5)
        arguments = [torch.randn(2, 6, 16, 12), torch.randn(2, 5, 8, 6), torch.rand(5, len(ops))]
    return module.double(), [x.double() for x in arguments]


# How each runs as native calls, and with its convolutions in the library.
ROUTES = {
    "normal": (["relu_conv_norm"] * 2 + ["mixed_cell"], ["node_sum"] * 2),
    "reduction": (["relu_conv_norm"] * 2 + ["mixed_cell"], ["node_sum"] * 2),
    "nasbench201": (["mixed_cell"], ["node_sum"] * 3),
    "edge": (["mixed_cell"], ["node_sum"]),
}


@pytest.mark.parametrize("most", [C, C - 1])
@pytest.mark.parametrize("name", ROUTES)
def test_convolutions_of_wide_cells_are_the_librarys(name, most, monkeypatch):
    monkeypatch.setattr(_library, "MOST_CUDA_CHANNELS", most)
    module, arguments = wide_cell(name)
    plain = copy.deepcopy(module)
    with use_backend("reference"):
        expected = plain(*arguments)
    move_there(module)
    with pretended_device(), use_cuda_kernels(), Recorded() as mode:
        output = module(*(There(x) for x in arguments))
    called = [op for op in mode.native if "statistics" not in op]
    assert called == ROUTES[name][most < C]
    torch.testing.assert_close(output.values, expected)
    # Running statistics moved as by the modules' own forwards.
    for moved, own in zip(module.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(moved.values, own)


@pytest.fixture(params=[torch.float16, torch.bfloat16], ids=["half", "bfloat16"])
def autocast(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """Autocast of CUDA, which its context refuses without a device."""
    before = torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", request.param)
    yield request.param
    torch.set_autocast_enabled("cuda", False)
    torch.set_autocast_dtype("cuda", before)


def test_under_autocast_a_wide_edge_keeps_its_sum(autocast, recorded, monkeypatch):
    monkeypatch.setattr(_library, "MOST_CUDA_CHANNELS", C - 1)
    primitives = get_space("s5").primitives["normal"][0]
    edge = MixedOp(C, 1, primitives).eval()  # fake statistics cannot move
    there = {name: x.detach().to(FAKE) for name, x in edge.state_dict().items()}
    x, weights = (torch.empty(size, device=FAKE) for size in ((2, C, 8, 6), len(primitives)))
    with torch.no_grad(), use_cuda_kernels():
        output = torch.func.functional_call(edge, there, (x, weights))
    assert [op for op in recorded.native if "statistics" not in op] == ["node_sum"]
    assert output.dtype == autocast
    assert output.is_contiguous(memory_format=torch.channels_last)


def test_under_autocast_statistics_stay_in_float32(autocast, recorded):
    maps = [torch.empty(6, 16, 5, 7, device=FAKE, dtype=dtype) for dtype in (autocast, None)]
    out = node_sum(maps, torch.empty(2, 2, device=FAKE), groups=2)
    assert (out.node.dtype, out.mean.dtype, out.var.dtype) == (autocast, *[torch.float32] * 2)


@pytest.mark.parametrize("channels", [64, 65])
def test_the_crossover(recorded, channels):
    x, other = (torch.empty(2, channels, 4, 4, device=device) for device in (FAKE, "cpu"))
    edge = MixedOp(4, 1, ["sep_conv_3x3", "skip_connect"])._plan()
    without = MixedOp(4, 1, ["max_pool_3x3", "skip_connect"])._plan()
    assert edge.is_for_library(x) is (channels == 65)
    assert not edge.is_for_library(other)
    assert not without.is_for_library(x)  # nothing that a library could do


def test_removals_share_wide_cells_too(monkeypatch):
    # What no table changes is computed once, which a library's faster product does not make up for.
    net, (images, labels) = small_net("s5", layers=3), small_batches((4,))[0]
    tables = mixed_tables(net)[:3]
    expected = MaskedEvaluation(net, tables)(images, labels)
    monkeypatch.setattr(_library, "MOST_CUDA_CHANNELS", 1)
    move_there(net)
    with pretended_device(), use_cuda_kernels(), Recorded() as mode:
        found = MaskedEvaluation(net, tables, max_memory=2**30)(There(images), There(labels))
    assert "mixed_cell" in mode.native
    assert "node_sum" not in mode.native
    torch.testing.assert_close(found.loss, expected.loss)
