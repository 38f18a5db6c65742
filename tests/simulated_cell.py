# SPDX-License-Identifier: Apache-2.0
"""The CUDA half of mixed_cell, relu_conv_norm and move_running_statistics, emulated on the CPU."""

from __future__ import annotations

import atexit
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from unittest import mock

import pytest
from checked_runs import architecture_of_process, build_of_process
from emulated import emulated
from simt_build import Build, missing_tools
from simulator import Simulated

import darts_fast
from darts_fast.nn import fused_cell

MARKS = [
    pytest.mark.filterwarnings("error"),
    # The emulated kernels would replace those of a build with CUDA.
    pytest.mark.skipif(
        bool(missing_tools()) or darts_fast._extension._C.with_cuda,
        reason="needs g++, objcopy and a build without CUDA",
    ),
]

_OPS = (
    *("mixed_cell", "mixed_cell_backward", "relu_conv_norm", "relu_conv_norm_backward"),
    "move_running_statistics",
)

_KERNELS = ["cuda/running_statistics_kernels.cu"]
_BINDINGS = [
    *(f"mixed_cell_{part}.cpp" for part in ("checks", "parts", "slots", "gradients")),
    *(f"cuda/{name}.cpp" for name in ("relu_conv_norm", "running_statistics")),
]


@contextmanager
def stems_as_modules() -> Iterator[None]:
    """As on a CUDA device, where they are PyTorch's."""
    with mock.patch.object(fused_cell, "current_stem", return_value=None):
        yield


def architecture_flags() -> list[str]:
    """Of kernels whose products are those of the process's architecture."""
    architecture = architecture_of_process()
    return [f"-D__CUDA_ARCH__={architecture}0"] if architecture < 80 else []


class SimulatedCell(Simulated):
    """One library for the three ops: they share kernels."""

    def __init__(self, folder: Path, build: Build = Build.PLAIN) -> None:
        flags = architecture_flags()
        super().__init__(
            folder, "mixed_cell", build, kernels=_KERNELS, bindings=_BINDINGS, flags=flags
        )

    @contextmanager
    def replacing(self) -> Iterator[None]:
        """The emulated kernels in the place of the CPU's, which are found by their key."""
        with self.registered(*_OPS), stems_as_modules():
            yield


def library_folder() -> Path:
    """For a library's objects, to the end of the process: a sanitizer finds its lines in them."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return Path(folder.name)


@cache
def _simulated() -> SimulatedCell:
    # Of a process: a library registers its kernels once.
    return SimulatedCell(library_folder(), build_of_process())


@pytest.fixture(autouse=True)
def backend() -> Iterator[SimulatedCell]:
    """Emulated kernels in the place of the CPU's; outputs and scratch start as NaN.

    By itself, for tests that ask for no backend by name: those of running statistics.
    """
    simulated = _simulated()
    with emulated(simulated, simulated.replacing()):
        yield simulated
