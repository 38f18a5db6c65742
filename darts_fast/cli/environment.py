# SPDX-License-Identifier: Apache-2.0
"""What the numbers of a run depend on beside its configuration."""

from __future__ import annotations

import platform
from typing import Any

import torch

from darts_fast import __version__, cpu_capability
from darts_fast.distributed import place

__all__ = ["environment"]


def environment() -> dict[str, Any]:
    """Versions, machine, kernels and thread count of this process, and how many share its run."""
    return {
        "darts_fast": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu_capability": cpu_capability(),
        "threads": torch.get_num_threads(),
        "processes": place()[1],
    }
