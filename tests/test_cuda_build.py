# SPDX-License-Identifier: Apache-2.0
"""What nvcc makes of the CUDA sources, and what a build with CUDA registers; without a device."""

from __future__ import annotations

import shutil
import sys

import pytest
import torch
from simt_build import COMPILER, ROOT, WARNINGS, run_tool
from torch.utils import cpp_extension

import darts_fast

sys.path.insert(0, str(ROOT / "bench" / "cuda"))

import toolkit

KERNELS = sorted((ROOT / "csrc/cuda").glob("*.cu"))
# Compiled in a minute, not in seconds.
LARGE = ("mixed_cell_kernels", "conv_blocks_kernels")
BINDINGS = sorted((ROOT / "csrc/cuda").glob("*.cpp"))

OPS = [
    *(
        f"{op}{way}"
        for op in ("node_sum", "conv_blocks", "mixed_cell", "relu_conv_norm")
        for way in ("", "_backward")
    ),
    "move_running_statistics",
]

nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")


@nvcc
@pytest.mark.parametrize(
    "source",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in LARGE else [])
        for path in KERNELS
    ],
)
def test_nvcc_finds_no_warning_and_no_spill(tmp_path, source):
    architectures = [f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in (80, 90)]
    run_tool(
        *("nvcc", "-std=c++20", "-O3", "-Icsrc", *architectures, "-Werror", "all-warnings"),
        *("-Xcompiler", "-Wall,-Wextra,-Werror"),
        *("-Xptxas", "-warn-spills,-warn-lmem-usage,-Werror"),
        *("-c", source, "-o", tmp_path / "kernels.o"),
    )


@nvcc
def test_sweeps_move_128_bits_at_a_time_in_their_own_precision(tmp_path):
    source, assembly = ROOT / "csrc/cuda/node_sum_kernels.cu", tmp_path / "kernels.ptx"
    run_tool("nvcc", "-std=c++20", "-Icsrc", "-arch=compute_80", "-ptx", source, "-o", assembly)
    entries = assembly.read_text().split(".entry ")[1:]
    vectors = {"IffLi4E": "v4.f32", "IddLi2E": "v2.f64"}
    vectors |= {f"IfNS_{name}ELi8E": "v4.u32" for name in ("4Half", "8BFloat16")}
    for kernel in ("statistics", "combine", "reduce", "grad_maps"):
        for suffix, vector in vectors.items():
            (body,) = (text for text in entries if f"node_sum_{kernel}{suffix}" in text[:200])
            assert f"ld.global.{vector}" in body, kernel
            if kernel in ("combine", "grad_maps"):
                assert f"st.global.{vector}" in body, kernel
            assert (".f64" in body) is (suffix == "IddLi2E"), kernel


def test_kernel_files_include_neither_torch_nor_the_emulation():
    allowed = {"cuda_runtime.h", "cuda_fp16.h", "cstddef", "cstdint", "cstring"}
    allowed |= {"algorithm", "functional", "limits", "numeric", "sstream"}
    allowed |= {"stdexcept", "string", "type_traits", "vector"}
    sources = [*KERNELS, *(ROOT / "csrc/cuda").glob("*.cuh"), *(ROOT / "csrc/cuda").glob("*.h")]
    assert len(sources) >= 4
    for path in sources:
        lines = [line for line in path.read_text().splitlines() if line.startswith("#include <")]
        assert {line[10:-1] for line in lines} <= allowed, path.name


@nvcc
@pytest.mark.parametrize("source", BINDINGS, ids=lambda path: path.stem)
def test_bindings_compile_against_torch_without_cuda(tmp_path, source):
    # torch for the CPU ships its CUDA headers, all but one that its build generates.
    generated = tmp_path / "c10/cuda/impl/cuda_cmake_macros.h"
    generated.parent.mkdir(parents=True)
    generated.write_text("#pragma once\n#define C10_CUDA_BUILD_SHARED_LIBS\n")
    system = [*cpp_extension.include_paths(), tmp_path, toolkit.cuda_home() / "include"]
    run_tool(
        *(COMPILER, "-std=c++20", "-fsyntax-only", "-Icsrc", *WARNINGS, "-Wno-unused-parameter"),
        *(f"-isystem{path}" for path in system),
        source,
    )


@pytest.mark.skipif(not darts_fast._extension._C.with_cuda, reason="this build has no CUDA kernels")
@pytest.mark.parametrize("name", OPS)
def test_a_build_with_cuda_registers_both_devices(name):
    registered = torch._C._dispatch_dump(f"darts_fast::{name}").splitlines()
    for key in ("CPU", "CUDA"):
        assert any(line.startswith(f"{key}: registered at") for line in registered), key
