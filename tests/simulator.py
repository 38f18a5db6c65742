# SPDX-License-Identifier: Apache-2.0
"""Builds kernel files with g++ against the host emulation of CUDA in tests/simt, and runs them.

The binding is the real one too: it registers its kernels for the CUDA key, and they are called with
tensors in host memory by naming that key. Only torch's guard and stream are replaced.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import cpp_extension

from darts_fast import _ops

ROOT = Path(__file__).resolve().parent.parent
COMPILER = os.environ.get("CXX", "g++")
FLAGS = ["-std=c++20", "-O2", "-g1", "-fPIC", "-I", "tests/simt", "-I", "csrc"]
WARNINGS = ["-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror"]
SANITIZERS = [
    "-fsanitize=address,undefined",
    "-fno-sanitize=object-size",  # address knows more: the variable, and how far behind it
    "-fno-sanitize-recover=all",
]
TOOLS = (COMPILER, "objcopy")


class Order(IntEnum):
    """In which order the threads of a block, and the blocks of a grid, run."""

    ASCENDING = 0
    DESCENDING = 1
    SHUFFLED = 2


def missing_tools() -> list[str]:
    """What the emulation needs and this machine lacks."""
    return [tool for tool in TOOLS if shutil.which(tool) is None]


def run_tool(*command: object) -> None:
    """Runs a command in the root of the checkout; its output is the error."""
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


def compile_kernels(source: Path, folder: Path, *, sanitize: bool) -> list[Path]:
    """The objects of a kernel file and of the scheduler that runs it.

    A kernel file has no variables but its `__shared__` ones; g++ ignores a section attribute on
    variables of templates, so they are moved to the section that the scheduler fills afterwards.
    """
    objects = [folder / f"{source.stem}_kernels.o", folder / "simt.o"]
    extra = SANITIZERS if sanitize else []
    for path, target in zip([source, ROOT / "tests/simt/simt.cpp"], objects, strict=True):
        flags = [*FLAGS, *WARNINGS, *extra]
        run_tool(COMPILER, *flags, "-x", "c++", "-c", path.relative_to(ROOT), "-o", target)
    run_tool("objcopy", "--rename-section", ".bss=simt_shared,alloc,load,data,contents", objects[0])
    return objects


def build_program(source: Path, folder: Path, *, sanitize: bool) -> Path:
    """A kernel file with its own `main` as a program."""
    program = folder / source.stem
    objects = compile_kernels(source, folder, sanitize=sanitize)
    run_tool(COMPILER, *(SANITIZERS if sanitize else []), *objects, "-o", program)
    return program


class Simulator:
    """The CUDA half of the extension, emulated. One per process: it registers kernels."""

    def __init__(self, folder: Path, *, sanitize: bool) -> None:
        objects = compile_kernels(ROOT / "csrc/cuda/node_sum_kernels.cu", folder, sanitize=sanitize)
        objects.append(folder / "binding.o")
        headers = [f"-isystem{path}" for path in cpp_extension.include_paths()]
        # Optimising a binding takes longer than running it.
        flags = [*FLAGS, "-O0", "-g0", *headers]
        run_tool(COMPILER, *flags, "-c", "csrc/cuda/node_sum.cpp", "-o", objects[-1])
        library = folder / "simulated.so"
        torch_libraries = [*(f"-L{path}" for path in cpp_extension.library_paths())]
        torch_libraries += ["-ltorch_cpu", "-lc10"]
        extra = SANITIZERS if sanitize else []
        run_tool(COMPILER, "-shared", *extra, *objects, *torch_libraries, "-o", library)
        torch.ops.load_library(library)
        self._library = ctypes.CDLL(str(library))
        self._library.simt_launches.restype = ctypes.c_int64
        self._key = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
        # The ops themselves: tests replace the names in `_ops`.
        self._forward, self._backward = _ops.node_sum, _ops.node_sum_backward

    def set_order(self, order: Order, seed: int = 0) -> None:
        """Orders threads and blocks of all launches from now on."""
        self._library.simt_set_order(int(order), seed)

    def launches(self) -> int:
        """Kernels launched so far."""
        count: int = self._library.simt_launches()
        return count

    def forward(self, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The CUDA kernel of darts_fast::node_sum."""
        return self._forward.redispatch(self._key, *arguments)

    def backward(self, *arguments: Any) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        """The CUDA kernel of darts_fast::node_sum_backward."""
        return self._backward.redispatch(self._key, *arguments)

    def node_sum(
        self,
        maps: Sequence[Tensor],
        weights: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        *settings: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """In place of `_ops.node_sum`: forward and backward are the emulated kernels."""
        return _NodeSum.apply(
            self, settings, running_mean, running_var, weights, gamma, beta, *maps
        )


class _NodeSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        simulator: Simulator,
        settings: tuple[Any, ...],
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weights: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        *maps: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        node, mean, var = simulator.forward(
            maps, weights, gamma, beta, running_mean, running_var, *settings
        )
        ctx.simulator, ctx.settings = simulator, settings
        ctx.save_for_backward(weights, gamma, beta, mean, var, *maps)
        ctx.mark_non_differentiable(mean, var)
        return node, mean, var

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_node: Tensor, *_: Tensor | None) -> tuple[Any, ...]:
        weights, gamma, beta, mean, var, *maps = ctx.saved_tensors
        needs, needs_maps = ctx.needs_input_grad[4:7], ctx.needs_input_grad[7:]
        mask = [*needs_maps, *needs]
        grad_maps, *grads = ctx.simulator.backward(
            grad_node, maps, weights, gamma, beta, mean, var, *ctx.settings, mask
        )
        wanted = [
            grad if need else None
            for grad, need in zip([*grads, *grad_maps], [*needs, *needs_maps], strict=True)
        ]
        return (*(None,) * 4, *wanted)
