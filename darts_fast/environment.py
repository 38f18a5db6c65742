# SPDX-License-Identifier: Apache-2.0
"""What the numbers of a run depend on beside its configuration."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path
from typing import Any

import torch

from darts_fast import __version__, cpu_capability
from darts_fast.distributed import place

__all__ = ["environment"]


def environment() -> dict[str, Any]:
    """Versions and machine; ``threads`` are those of torch, ``processors`` those of the machine,
    ``processes`` those that share the run.
    """
    return {
        "darts_fast": __version__,
        "torch": str(torch.__version__),  # a plain string, as checkpoints hold
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "processor": _processor(),
        "processors": os.cpu_count(),
        "cpu_capability": cpu_capability(),
        "threads": torch.get_num_threads(),
        "processes": place()[1],
    }


@functools.cache
def _processor() -> str:
    """The processor's name as far as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
