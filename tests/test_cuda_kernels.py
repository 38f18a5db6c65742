# SPDX-License-Identifier: Apache-2.0
"""bench/cuda reads compilers' output rightly, and fails on kernels that are worse than recorded."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
from simt_build import ROOT

sys.path.insert(0, str(ROOT / "bench" / "cuda"))

import build_check
import compiled
import kernels
import launches
import roofline
import sass
import toolkit
import traffic
from occupancy import occupancy

nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")

SPILLS = """
#include <cuda_runtime.h>
template <typename T>
__global__ __launch_bounds__(1024, 2) void spills(const T* x, T* out) {
  T value[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) value[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; ++i) out[i * 1024 + threadIdx.x] = value[i] * value[63 - i];
}
template __global__ void spills(const float*, float*);
__global__ __launch_bounds__(32) void in_double(const float* x, float* out) {
  out[threadIdx.x] = static_cast<float>(x[threadIdx.x] * 1.1);
}
__global__ __launch_bounds__(32) void indexed(const float* x, float* out, int k) {
  float value[64];
  for (int i = 0; i < k; ++i) value[i] = x[i];
  out[threadIdx.x] = value[threadIdx.x];
}
__global__ __launch_bounds__(64) void sound(const float4* x, float4* out) {
  out[threadIdx.x] = x[threadIdx.x];
}
"""


@nvcc
def test_planted_defects_are_found(tmp_path):
    source = tmp_path / "planted.cu"
    source.write_text(SPILLS)
    file = compiled.compile_file(source, 80, tmp_path)
    found = "\n".join(kernels.defects([file], sums_in_double=[]))
    assert "sm_80: spills<float> spills" in found
    assert "sm_80: in_double computes in double" in found
    assert "sm_80: indexed has 256 bytes of local memory" in found
    assert "sound" not in found
    excused = "\n".join(kernels.defects([file], sums_in_double=["in_double"]))
    assert "in_double" not in excused
    assert {k.name: k.threads for k in file.kernels}["sound"] == 64


@nvcc
def test_instructions_of_a_planted_kernel(tmp_path):
    cuobjdump = toolkit.find_tool("cuobjdump")
    if cuobjdump is None:
        pytest.skip("cuobjdump is not installed")
    source = tmp_path / "planted.cu"
    source.write_text(SPILLS)
    file = compiled.compile_file(source, 80, tmp_path)
    code = sass.read(file.cubin, cuobjdump)
    by_name = {k.name: code[k.symbol] for k in file.kernels}
    assert by_name["sound"]["load_bits"] == by_name["sound"]["store_bits"] == 128
    assert by_name["sound"]["mix"]["load global"] == by_name["sound"]["mix"]["store global"] == 1
    assert by_name["in_double"]["mix"]["double"] >= 1
    assert by_name["in_double"]["load_bits"] == 32
    assert by_name["spills<float>"]["mix"]["local memory"] > 0
    assert by_name["spills<float>"]["mix"]["barrier"] == 1


@pytest.mark.parametrize(
    ("opcode", "kind", "bits"),
    [
        ("LDG.E.128", "load global", 128),
        ("LDG.E.64.CONSTANT", "load global", 64),
        ("LDG.E.U8", "load global", 8),
        ("STG.E", "store global", 32),
        ("LDGSTS.E.BYPASS.128", "async copy", 128),
        ("LDSM.16.M88.4", "load shared", 16),
        ("FSEL", "float", 32),
        ("IMAD.MOV.U32", "integer", 32),
        ("HMMA.16816.F32", "matrix", 32),
        ("DFMA", "double", 32),
        ("NANOSLEEP", "other", 32),
    ],
)
def test_kinds_and_widths_of_opcodes(opcode, kind, bits):
    assert sass.kind_of(opcode) == kind
    if kind.endswith("global") or "copy" in kind:
        assert sass.width_of(opcode) == bits


def test_counting_leaves_out_padding_and_predicates():
    text = (
        "\t\tFunction : first\n"
        "        /*0000*/                   MOV R1, c[0x0][0x28] ;   /* 0x00000a0000017a02 */\n"
        "                                                            /* 0x000fe40000000f00 */\n"
        "        /*0010*/              @!P0 LDG.E.128 R4, [R2] ;     /* 0x0000000402048981 */\n"
        "        /*0020*/                   NOP ;                    /* 0x0000000000007918 */\n"
        "\t\tFunction : second\n"
        "        /*0000*/             @UP1 UMOV UR4, URZ ;           /* 0x000000ff00047c82 */\n"
    )
    assert sass.count(text) == {
        "first": Counter({"MOV": 1, "LDG.E.128": 1}),
        "second": Counter({"UMOV": 1}),
    }


# By hand, from the limits of the architecture: 64 Ki registers in units of 256 per warp.
@pytest.mark.parametrize(
    ("architecture", "threads", "registers", "shared", "blocks", "share", "limit"),
    [
        (80, 256, 32, 0, 8, 1.0, "threads/registers"),
        (80, 256, 33, 0, 6, 0.75, "registers"),  # 40 registers: 12 warps in each partition
        (90, 256, 64, 0, 4, 0.5, "registers"),
        (90, 256, 32, 46 * 1024, 4, 0.5, "shared"),  # and 1 KiB each of 228
        (86, 1024, 32, 0, 1, 2 / 3, "threads"),
        (75, 32, 16, 0, 16, 0.5, "blocks"),
        (89, 128, 255, 0, 2, 1 / 6, "registers"),
    ],
)
def test_occupancy(architecture, threads, registers, shared, blocks, share, limit):
    got = occupancy(architecture, threads, registers, shared)
    assert (got.blocks, got.limit) == (blocks, limit)
    assert got.share == pytest.approx(share)


RECORDED = {"registers": 40, "shared": 0, "blocks_per_multiprocessor": 6, "load_bits": 128}
RECORDED |= {"store_bits": 128, "instructions": 100, "doubles": 2, "mix": {"matrix": 5}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"registers": 41}, "k, sm_80: registers 41, recorded 40"),
        ({"shared": 16}, "k, sm_80: shared 16, recorded 0"),
        ({"doubles": 3}, "k, sm_80: doubles 3, recorded 2"),
        ({"blocks_per_multiprocessor": 5}, "k, sm_80: blocks_per_multiprocessor 5, recorded 6"),
        ({"load_bits": 64}, "k, sm_80: load_bits 64, recorded 128"),
        ({"instructions": 106}, "k, sm_80: instructions 106, recorded 100"),
        ({"mix": {"float": 90}}, "k, sm_80: 0 instructions of tensor cores, recorded 5"),
    ],
)
def test_what_is_worse_than_its_record_fails(change, message):
    recorded = {"k": {"sm_80": RECORDED}}
    assert kernels.worse({"k": {"sm_80": {**RECORDED, **change}}}, recorded) == [message]


def test_what_is_no_worse_passes_and_what_is_new_fails():
    recorded = {"k": {"sm_80": RECORDED}}
    better = {**RECORDED, "registers": 32, "instructions": 105, "blocks_per_multiprocessor": 8}
    assert kernels.worse({"k": {"sm_80": better}}, recorded) == []
    without_tool = {key: RECORDED[key] for key in ("registers", "shared")}
    assert kernels.worse({"k": {"sm_80": without_tool}}, recorded) == []
    assert kernels.worse({"new": {"sm_80": RECORDED}}, recorded) == [
        "new, sm_80: not recorded; run with --record"
    ]


def test_the_table_is_that_of_the_record():
    record = json.loads(kernels.RECORD.read_text())
    assert kernels.RECORD.read_text() == kernels.as_json(record)
    assert Path(kernels.TABLE).read_text() == kernels.table(record)


def test_recorded_bytes_keep_to_the_target():
    path = ROOT / "bench/results/cuda-traffic.json"
    record = json.loads(path.read_text())
    rows = [(result["case"], row) for result in record["results"] for row in result["sweeps"]]
    assert len(rows) >= 9
    assert record["target"] == traffic.TARGET
    for case, row in rows:
        # The least of a cell's backward is that of sweeps of their own for the norms' sums, which
        # these kernels take, but for the last node, with the gradients of the node behind.
        least = 0.95 if "backward" in case and row["sweep"].startswith("sums") else 1
        assert least <= row["of_minimum"] <= traffic.TARGET, (case, row["sweep"])
    assert traffic.table(record["results"]) in path.with_suffix(".md").read_text()


def test_recorded_launches_keep_to_the_target():
    record = json.loads(launches.RECORD.read_text())
    assert launches.RECORD.with_suffix(".md").read_text() == launches.page(record)
    cells = [launches.Launches(**row) for row in record["cells"]]
    assert len(cells) == 13
    assert all(sum(cell.own.values()) > 0 for cell in cells)
    assert all(cell.operations <= launches.TARGET for cell in cells)


@nvcc
@pytest.mark.slow
def test_kernels_are_no_worse_than_recorded(capsys):
    assert kernels.main([]) == 0, capsys.readouterr().out


def test_the_page_has_the_roofline_of_the_script():
    page = roofline.PAGE.read_text()
    assert roofline.filled(page) == page


def test_a_floor_is_the_longer_of_memory_and_arithmetic():
    gpu = roofline.Gpu("of a test", memory=1000, float32=10)
    assert roofline.Part("copy", flop=1e9, nbytes=1e9).floor(gpu) == (1.0, "memory")
    assert roofline.Part("product", flop=2e10, nbytes=1e9).floor(gpu) == (2.0, "arithmetic")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc says which architectures there are")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, []),
        ({"with_cuda": False}, ["the extension was built without CUDA"]),
        ({"ops": {"node_sum": ["CPU"]}}, ["node_sum has no CUDA kernel"]),
    ],
)
def test_a_build_must_have_kernels_and_architectures(change, message):
    names = [f"sm_{number}" for number in toolkit.architectures()]
    good = {
        "with_cuda": True,
        "ops": {"node_sum": ["CPU", "CUDA"]},
        "embedded": {"sass": names, "ptx": names[-1:]},
    }
    assert build_check.failures({**good, **change}) == message
    partial = {**good, "embedded": {"sass": names[1:], "ptx": []}}
    assert build_check.failures(partial) == [
        f"no machine code for {names[0]}",
        f"PTX must be that of {names[-1]}, got []",
    ]
