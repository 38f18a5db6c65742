# SPDX-License-Identifier: Apache-2.0
"""Which implementation runs, the fused kernels or the plain PyTorch reference, and what it saves.

The environment variable DARTS_FAST_BACKEND=fused|reference sets it for a process (default: fused),
`use_backend` for a block of code; DARTS_FAST_BF16_MAPS=0|1 (default: 0) and `use_bf16_maps` set
whether the fused cell saves its maps in bfloat16; DARTS_FAST_CUDA_KERNELS=0|1 (default: 0) and
`use_cuda_kernels` set whether modules run cells on a CUDA device by the kernels for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

BACKENDS = ("fused", "reference")


def _checked(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source}: must be one of {', '.join(BACKENDS)}, got {name!r}")
    return name


def _switched(value: str, source: str) -> bool:
    if value not in ("0", "1"):
        raise ValueError(f"{source}: must be 0 or 1, got {value!r}")
    return value == "1"


# Plain globals: torch.compile guards on their values, and cannot trace a context variable.
_current = _checked(os.environ.get("DARTS_FAST_BACKEND", "fused"), "DARTS_FAST_BACKEND")
_bf16_maps = _switched(os.environ.get("DARTS_FAST_BF16_MAPS", "0"), "DARTS_FAST_BF16_MAPS")
_cuda_kernels = _switched(os.environ.get("DARTS_FAST_CUDA_KERNELS", "0"), "DARTS_FAST_CUDA_KERNELS")


def backend() -> str:
    """The backend in use: "fused" or "reference"."""
    return _current


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Runs a block with the backend `name`, in every thread of the process.

    Raises:
        ValueError: `name` is not "fused" or "reference".
    """
    global _current
    before, _current = _current, _checked(name, "use_backend")
    try:
        yield
    finally:
        _current = before


def bf16_maps() -> bool:
    """Whether the fused cell saves the maps of its convolutions in bfloat16."""
    return _bf16_maps


@contextmanager
def use_bf16_maps(enabled: bool = True) -> Iterator[None]:
    """Runs a block in which the fused cell saves the maps of its convolutions in bfloat16, or not.

    For `functional.mixed_cell`, `functional.mixed_op` and the modules that run them, in float32:
    what a convolution gives to its batch norm is stored in two bytes instead of four, for the
    backward and so between the sweeps of the forward. States, nodes, pooled maps, statistics,
    gradients and every accumulation stay in float32. A forward that saves nothing rounds nothing;
    float64 and the backend "reference" know no such maps.

    The error, as a relative L2 distance to float64, in cells of random weights of the DARTS spaces
    and of NAS-Bench-201, C = 16: of the output 2e-3 to 3e-3, of the gradients 2e-3 to 4e-2 (of
    the states, the weights, all convolutions, all scales and shifts), where float32 has 2e-7 and
    6e-7. Most of a gradient's error comes from values that rounding moves across a ReLU.
    """
    global _bf16_maps
    before, _bf16_maps = _bf16_maps, bool(enabled)
    try:
        yield
    finally:
        _bf16_maps = before


def cuda_kernels() -> bool:
    """Whether modules on a CUDA device run whole cells by the CUDA kernels."""
    return _cuda_kernels


@contextmanager
def use_cuda_kernels(enabled: bool = True) -> Iterator[None]:
    """Runs a block in which modules on a CUDA device run by its kernels, or by plain PyTorch.

    Off by default: the kernels equal `reference` under an emulation of CUDA on the CPU, but were
    timed on no device. The backend must be "fused", the extension built with CUDA, the states
    float32 or float64, or under autocast float32 or its own dtype: maps are then stored in that.
    Cells, single edges of them, preprocessing and running statistics follow the switch; of cells
    with more than 64 channels the convolutions stay PyTorch's. `functional` always calls the
    kernels of its tensors' device.
    """
    global _cuda_kernels
    before, _cuda_kernels = _cuda_kernels, bool(enabled)
    try:
        yield
    finally:
        _cuda_kernels = before
