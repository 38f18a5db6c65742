# SPDX-License-Identifier: Apache-2.0
"""The 16-bit types of the CUDA emulation convert as torch does, bit for bit."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch
from simt_build import COMPILER, FLAGS, WARNINGS, missing_tools, run_tool
from torch import Tensor

pytestmark = pytest.mark.skipif(bool(missing_tools()), reason="needs g++")

FORMATS = {"half": torch.float16, "bfloat16": torch.bfloat16}
ALL = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)  # every bit pattern

each_format = pytest.mark.parametrize("name", FORMATS)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    path: Path = tmp_path_factory.mktemp("rounding") / "rounding.so"
    run_tool(COMPILER, *FLAGS, *WARNINGS, "-shared", "tests/simt/rounding.cpp", "-o", path)
    return ctypes.CDLL(str(path))


def convert(library: ctypes.CDLL, function: str, values: Tensor, dtype: torch.dtype) -> Tensor:
    values = values.contiguous()
    out = torch.empty(values.shape, dtype=dtype)
    pointers = (ctypes.c_void_p(x.data_ptr()) for x in (values, out))
    getattr(library, function)(*pointers, ctypes.c_int64(values.numel()))
    return out


def narrow(library: ctypes.CDLL, name: str, values: Tensor) -> Tensor:
    return convert(library, f"{name}_from_float", values, torch.int16).view(FORMATS[name])


@each_format
def test_every_value_widens(library, name):
    got = convert(library, f"{name}_to_float", ALL, torch.float32)
    wanted = ALL.view(FORMATS[name]).float()
    numbers = ~wanted.isnan()
    assert torch.equal(got[numbers].view(torch.int32), wanted[numbers].view(torch.int32))
    assert bool(got[~numbers].isnan().all())


@each_format
def test_every_value_comes_back(library, name):
    wide = ALL.view(FORMATS[name]).float()
    wide = wide[~wide.isnan()]
    assert torch.equal(
        narrow(library, name, wide).view(torch.int16), wide.to(FORMATS[name]).view(torch.int16)
    )


@each_format
def test_between_two_values_the_nearer_and_at_the_middle_the_even_one(library, name):
    wide = ALL.view(FORMATS[name]).float()
    wide = wide[wide.isfinite()].unique()
    middle = (wide[:-1].double() + wide[1:].double()) / 2  # exact in float32 for both formats
    for bits in (-1, 0, 1):
        values = (middle.float().view(torch.int32) + bits).view(torch.float32)
        wanted = values.to(FORMATS[name])
        assert torch.equal(
            narrow(library, name, values).view(torch.int16), wanted.view(torch.int16)
        )


@each_format
def test_any_float_narrows(library, name):
    values = torch.randint(-(2**31), 2**31, (1_000_000,)).to(torch.int32).view(torch.float32)
    got, wanted = narrow(library, name, values), values.to(FORMATS[name])
    numbers = ~values.isnan()
    assert torch.equal(got[numbers].view(torch.int16), wanted[numbers].view(torch.int16))
    assert bool(got[~numbers].isnan().all())


def test_arithmetic_in_a_narrow_type_does_not_compile(tmp_path):
    source = tmp_path / "sum.cpp"
    source.write_text("#include <cuda_fp16.h>\nfloat sum(__half x, __half y) { return x + y; }\n")
    with pytest.raises(AssertionError, match="deleted function"):
        run_tool(COMPILER, *FLAGS, "-c", source, "-o", tmp_path / "sum.o")
