# SPDX-License-Identifier: Apache-2.0
"""A warp's matrix product in the CUDA emulation (tests/simt/fragments.cpp), and the layout that
csrc/cuda/fragments.cuh gives it, against plain products."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch
from simt_build import COMPILER, FLAGS, ROOT, compile_kernels, missing_tools, run_tool
from torch import Tensor

pytestmark = pytest.mark.skipif(
    bool(missing_tools()), reason=f"the emulation is built with {', '.join(missing_tools())}"
)

FORMATS = {"half": torch.float16, "bfloat16": torch.bfloat16}
# With one instruction of depth 16; and as for sm_75, with two of depth 8, of half only.
VARIANTS = [("sm_80", "half"), ("sm_80", "bfloat16"), ("sm_75", "half")]

each_variant = pytest.mark.parametrize(("architecture", "name"), VARIANTS)


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ctypes.CDLL]:
    source = ROOT / "tests/simt/fragments_library.cpp"
    found = {}
    for architecture, flags in {"sm_80": [], "sm_75": ["-D__CUDA_ARCH__=750"]}.items():
        folder: Path = tmp_path_factory.mktemp(architecture)
        objects = compile_kernels([source], folder, more=flags)
        library = folder / "fragments.so"
        run_tool(COMPILER, *FLAGS, "-shared", "-Wl,-Bsymbolic", *objects, "-o", library)
        found[architecture] = ctypes.CDLL(str(library))
    return found


def multiply(library: ctypes.CDLL, name: str, a: Tensor, b: Tensor, sums: Tensor) -> Tensor:
    """sums [16, 8] + a [16, 16] b [16, 8], by the emulated warp."""
    out = sums.clone()
    columns = b.t().contiguous()
    pointers = [ctypes.c_void_p(x.data_ptr()) for x in (a, columns, out)]
    getattr(library, f"multiply_{name}")(*pointers)
    return out


@each_variant
def test_every_element_stands_where_it_belongs(libraries, architecture, name):
    # Products of powers of two: the sum tells which elements met.
    a, b = torch.zeros(16, 16), torch.zeros(16, 8)
    for row, k, column in torch.cartesian_prod(*map(torch.arange, (16, 16, 8))).tolist():
        a[row, k], b[k, column] = 2.0, 4.0
        factors = (x.to(FORMATS[name]) for x in (a, b))
        found = multiply(libraries[architecture], name, *factors, torch.ones(16, 8))
        assert torch.equal(found, 1 + a @ b)
        a[row, k] = b[k, column] = 0.0


@each_variant
def test_products_are_exact_and_sums_those_of_float32_in_order(libraries, architecture, name):
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        shapes = [(16, 16), (16, 8), (16, 8)]
        a, b, sums = (torch.randn(shape, generator=generator) for shape in shapes)
        a, b = a.to(FORMATS[name]), b.to(FORMATS[name])
        expected = sums.clone()
        for k in range(16):
            product = a[:, k, None].double() * b[None, k].double()
            assert torch.equal(product.float().double(), product)
            expected += product.float()
        assert torch.equal(multiply(libraries[architecture], name, a, b, sums), expected)


@each_variant
def test_what_is_infinite_or_nan_stays(libraries, architecture, name):
    a, b = torch.ones(16, 16), torch.ones(16, 8)
    a[3, 5], a[4, 11], b[2, 7] = torch.inf, torch.nan, -torch.inf
    factors = (x.to(FORMATS[name]) for x in (a, b))
    found = multiply(libraries[architecture], name, *factors, torch.zeros(16, 8))
    torch.testing.assert_close(found, a @ b, rtol=0, atol=0, equal_nan=True)
