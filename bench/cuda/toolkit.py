# SPDX-License-Identifier: Apache-2.0
"""The CUDA toolkit: where it is, what it compiles for, and the kernel files of the project."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
WANTED = (75, 80, 86, 89, 90, 100, 120)
FLAGS = ("-std=c++20", "-O3", f"-I{ROOT / 'csrc'}")


def kernel_files() -> list[Path]:
    return sorted((ROOT / "csrc" / "cuda").glob("*.cu"))


@cache
def _nvcc(*options: str) -> str:
    command = ["nvcc", *options]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def nvcc_version() -> str:
    """As "13.0.88"."""
    found = re.search(r"release [\d.]+, V([\d.]+)", _nvcc("--version"))
    assert found, "nvcc --version has no version"
    return found[1]


@cache
def architectures() -> tuple[int, ...]:
    """Those of `WANTED` that the toolkit compiles for, 90 for sm_90."""
    listed = {int(number) for number in re.findall(r"sm_(\d+)\b", _nvcc("--list-gpu-code"))}
    return tuple(number for number in WANTED if number in listed)


def cuda_home() -> Path:
    """The toolkit's folder: CUDA_HOME, or what nvcc says of itself."""
    if os.environ.get("CUDA_HOME"):
        return Path(os.environ["CUDA_HOME"])
    done = subprocess.run(
        ["nvcc", "--dryrun", "-c", "x.cu"], capture_output=True, text=True, check=False
    )
    found = re.search(r"^#\$ TOP=(\S+)", done.stderr, flags=re.MULTILINE)
    assert found, "nvcc --dryrun does not say where it is"
    return Path(found[1]).resolve()


def find_tool(name: str, python: Path | None = None) -> str | None:
    """cuobjdump or nvdisasm: of the PATH, or of the PyPI packages of that Python."""
    if shutil.which(name):
        return name
    prefix = Path(sys.prefix) if python is None else python.parent.parent
    found = prefix.glob(f"lib/python*/site-packages/nvidia/*/bin/{name}")
    return next((str(path) for path in found), None)
