# SPDX-License-Identifier: Apache-2.0
"""Fast differentiable architecture search: fused kernels, supernets, search and selection."""

from darts_fast._extension import (
    available_cpu_capabilities,
    build_info,
    cpu_capability,
    set_cpu_capability,
)
from darts_fast.accelerate import (
    AccelerateError,
    accelerate,
    accelerated,
    as_supernet,
    explain,
    restore,
)
from darts_fast.nn import frozen_statistics

__version__ = "0.1.0"

__all__ = [
    "AccelerateError",
    "__version__",
    "accelerate",
    "accelerated",
    "as_supernet",
    "available_cpu_capabilities",
    "build_info",
    "cpu_capability",
    "explain",
    "frozen_statistics",
    "restore",
    "set_cpu_capability",
]
