# SPDX-License-Identifier: Apache-2.0
"""Loads the compiled extension, or says what was built and what was found."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import torch

_BUILD_INFO = Path(__file__).with_name("_build_info.json")


def build_info() -> dict[str, Any]:
    """Facts of the build: torch, python, machine, compiler, cpu_capabilities, cuda, cuda_arch_list.

    Returns an empty dict where the package was never built.
    """
    if not _BUILD_INFO.is_file():
        return {}
    facts: dict[str, Any] = json.loads(_BUILD_INFO.read_text())
    return facts


def _explain(error: ImportError, built: dict[str, Any]) -> str:
    """One message for every way in which loading fails."""
    found = f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}"
    if not built:
        return (
            f"darts_fast: its extension was never built here (found: {found}). "
            "Build it with: pip install --no-build-isolation -e ."
        )
    return (
        f"darts_fast: its extension does not load: {error}. Built for torch {built['torch']}, "
        f"Python {built['python']}, {built['machine']}, CUDA {built['cuda']}; found: {found}, "
        f"CUDA {torch.version.cuda}. Rebuild it with: pip install --no-build-isolation -e ."
    )


try:
    from darts_fast import _C
except ImportError as error:
    raise ImportError(_explain(error, build_info())) from error


def cpu_capability() -> str:
    """The CPU capability whose kernels run: "DEFAULT", "AVX2", "AVX512" or "AVX512BF16".

    The last differs from "AVX512" under autocast in bfloat16 alone.
    """
    name: str = _C.cpu_capability()
    return name


def available_cpu_capabilities() -> list[str]:
    """Capabilities that this build contains and this machine can run, weakest first."""
    names: list[str] = _C.available_cpu_capabilities()
    return names


def set_cpu_capability(name: str) -> None:
    """Runs the kernels of another capability from now on.

    Raises:
        ValueError: the name is unknown, or this build or machine does not have it.
    """
    _C.set_cpu_capability(name)


# An unknown DARTS_FAST_CPU_CAPABILITY is an error of the import, not of the first kernel.
cpu_capability()
