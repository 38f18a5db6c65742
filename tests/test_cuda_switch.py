# SPDX-License-Identifier: Apache-2.0
"""Which modules run by the CUDA kernels: none unless asked, shown with fake CUDA tensors."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from darts_fast.backend import cuda_kernels, use_backend, use_cuda_kernels
from darts_fast.functional import _library
from darts_fast.functional._statistics import _is_native
from darts_fast.nn.fused_cell import runs_native
from darts_fast.nn.node import runs_fused, sums_fused


@pytest.fixture
def x() -> Iterator[torch.Tensor]:
    with FakeTensorMode():
        yield torch.empty(2, 4, 8, 8, device="cuda")


def test_modules_on_a_cuda_device_stay_on_pytorch_unless_asked(x):
    assert not cuda_kernels()
    assert not runs_native(x)
    with use_cuda_kernels():
        assert runs_native(x)
        assert runs_native(x, x)
        assert runs_native(x.double())
        with use_cuda_kernels(False):
            assert not runs_native(x)
    assert not runs_native(x)


def test_what_the_cuda_kernels_do_not_take(x):
    with use_cuda_kernels():
        assert not runs_native(x.half())
        assert not runs_native(x, x.double())
        assert not runs_native(x, torch.empty(3, device="cpu"))
        assert not runs_fused(x)  # what is no cell stays on PyTorch
        with use_backend("reference"):
            assert not runs_native(x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_under_autocast_states_have_its_dtype_or_float32(x, dtype, monkeypatch):
    before = torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    other = torch.float16 if dtype == torch.bfloat16 else torch.bfloat16
    try:
        assert not runs_native(x)
        with use_cuda_kernels():
            assert runs_native(x)
            assert runs_native(x.to(dtype), x)
            for refused in (x.to(other), x.double()):
                assert not runs_native(refused)
                assert not runs_native(x, refused)
            # The sum of a cell whose convolutions are the library's.
            assert not sums_fused(x)
            monkeypatch.setattr(_library, "MOST_CUDA_CHANNELS", 3)
            assert sums_fused(x)
            assert sums_fused(x.to(dtype))
            assert not sums_fused(x.to(other))
        assert not sums_fused(x)
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", before)


@pytest.mark.parametrize("enabled", [False, True])
def test_running_statistics_follow_the_switch(x, enabled):
    norm = nn.BatchNorm2d(4)
    with use_cuda_kernels(enabled):
        assert _is_native([norm.running_mean], x) is enabled
        assert not _is_native([norm.running_mean], x.double())


@pytest.mark.parametrize(("value", "expected"), [("1", "True"), ("0", "False")])
def test_the_environment_sets_it_for_a_process(value, expected):
    done = subprocess.run(
        [sys.executable, "-c", "import darts_fast.backend as b; print(b.cuda_kernels())"],
        env={"DARTS_FAST_CUDA_KERNELS": value, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == expected
