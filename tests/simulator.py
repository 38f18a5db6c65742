# SPDX-License-Identifier: Apache-2.0
"""Runs the CUDA half of the extension on the CPU, emulated by tests/simt.

The binding is the real one too: it registers its kernels for the CUDA key, and they are called with
tensors in host memory by naming that key. Only torch's guard and stream are replaced.
"""

from __future__ import annotations

import ctypes
import functools
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import torch
from simt_build import COMPILER, FLAGS, ROOT, Build, compile_kernels, run_tool
from torch import Tensor
from torch.utils import cpp_extension

from darts_fast import _ops


class Order(IntEnum):
    """In which order the threads of a block, and the blocks of a grid, run."""

    ASCENDING = 0
    DESCENDING = 1
    SHUFFLED = 2


@dataclass(frozen=True)
class Way:
    """Bytes of global memory that a kernel reads, or writes."""

    requested: int
    """By the threads, before anything is shared or cached."""
    sectors: int
    """32 bytes for each sector that a block touches, once per block."""
    distinct: int
    """Touched at all, once per launch: what memory must move."""


@dataclass(frozen=True)
class LaunchCounts:
    """What one launch did."""

    kernel: str
    blocks: int
    threads: int
    read: Way
    written: Way
    shared_read: int
    shared_written: int


class Simulated:
    """The CUDA half of a family of ops, emulated. One per family and process: it registers kernels.

    Args:
        folder: for the objects.
        family: its sources are csrc/cuda/FAMILY_kernels.cu and csrc/cuda/FAMILY.cpp.
        build: what checks the kernels.
        kernels, bindings: sources beside those, relative to csrc.
        flags: for the kernels besides those of the build.
    """

    def __init__(
        self,
        folder: Path,
        family: str,
        build: Build = Build.PLAIN,
        *,
        kernels: Iterable[str] = (),
        bindings: Iterable[str] = (),
        flags: Iterable[str] = (),
    ) -> None:
        names = [f"cuda/{family}_kernels.cu", *kernels]
        objects = compile_kernels([ROOT / "csrc" / name for name in names], folder, build, flags)
        headers = [f"-isystem{path}" for path in cpp_extension.include_paths()]
        for name in (f"cuda/{family}.cpp", *bindings):
            objects.append(folder / f"{Path(name).stem}_binding.o")
            # Optimising a binding takes longer than running it.
            flags = [*FLAGS, "-O0", "-g0", *headers]
            run_tool(COMPILER, *flags, "-c", f"csrc/{name}", "-o", objects[-1])
        library = folder / f"simulated_{family}.so"
        torch_libraries = [*(f"-L{path}" for path in cpp_extension.library_paths())]
        torch_libraries += ["-ltorch_cpu", "-lc10"]
        # Each family keeps a scheduler of its own.
        flags = ["-shared", "-Wl,-Bsymbolic", *build.link]
        run_tool(COMPILER, *flags, *objects, *torch_libraries, "-o", library)
        torch.ops.load_library(library)
        self._library = ctypes.CDLL(str(library))
        self._library.simt_launches.restype = ctypes.c_int64
        if build is Build.COUNT:
            self._library.simt_counts.restype = ctypes.c_char_p
        self._key = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
        self.by_op: Counter[str] = Counter()  # launches; whoever reads them clears them first

    def set_order(self, order: Order, seed: int = 0) -> None:
        """Orders threads and blocks of all launches from now on."""
        self._library.simt_set_order(int(order), seed)

    def launches(self) -> int:
        """Kernels launched so far."""
        count: int = self._library.simt_launches()
        return count

    def counts(self) -> list[LaunchCounts]:
        """The launches since the last `reset_counts`, in a build that counts."""
        found = []
        for line in self._library.simt_counts().decode().splitlines():
            name, *fields = line.split("\t")
            numbers = [int(field) for field in fields]
            ways = Way(*numbers[2:5]), Way(*numbers[5:8])
            found.append(LaunchCounts(name, *numbers[:2], *ways, *numbers[8:]))
        return found

    def reset_counts(self) -> None:
        self._library.simt_reset_counts()

    def call(self, op: Any, *arguments: Any) -> Any:
        """The CUDA kernel of an op, as `_ops.node_sum`."""
        before = self.launches()
        result = op.redispatch(self._key, *arguments)
        self.by_op[op._schema.name.partition("::")[2]] += self.launches() - before
        return result

    @contextmanager
    def registered(self, *names: str) -> Iterator[None]:
        """Ops' kernels in the place of the CPU's, where they are found by their key."""
        library = torch.library.Library("darts_fast", "IMPL")
        for each in names:
            op = getattr(torch.ops.darts_fast, each).default
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # that it takes another's place
                library.impl(each, functools.partial(self.call, op), "CPU")
        try:
            yield
        finally:
            library._destroy()


class Simulator(Simulated):
    """node_sum, emulated."""

    def __init__(self, folder: Path, build: Build = Build.PLAIN) -> None:
        super().__init__(folder, "node_sum", build)

    def forward(self, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The CUDA kernel of darts_fast::node_sum."""
        return self.call(_ops.node_sum, *arguments)

    def backward(self, *arguments: Any) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        """The CUDA kernel of darts_fast::node_sum_backward."""
        return self.call(_ops.node_sum_backward, *arguments)
