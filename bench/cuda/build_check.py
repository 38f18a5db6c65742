# SPDX-License-Identifier: Apache-2.0
"""Builds the complete extension against a CUDA build of torch, without a GPU, and looks inside.

    python bench/cuda/build_check.py --venv FOLDER [--torch 2.14.1] [--json FILE]

FOLDER is a virtual environment; it is made, and torch with CUDA installed into it (5.5 GB), if it
is not there. The extension is imported with no driver; the kernels it registers for CUDA must be
those of csrc/cuda, and the architectures in its file those it was built for.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from toolkit import ROOT, architectures, cuda_home, find_tool, nvcc_version

BUILD_TOOLS = ("ninja", "setuptools>=77", "wheel", "pybind11>=2.13", "numpy", "click", "rich")
DISASSEMBLERS = ("nvidia-cuda-cuobjdump", "nvidia-cuda-nvdisasm")

# Runs in the environment, with the built package first on the path.
_INSPECT = """
import json, sys, torch, darts_fast
from darts_fast import _extension
ops = {}
for name in sys.argv[1:]:
    dump = torch._C._dispatch_dump(f"darts_fast::{name}")
    ops[name] = sorted(k for k in ("CPU", "CUDA") if f"\\n{k}: registered at" in "\\n" + dump)
print(json.dumps({
    "torch": torch.__version__, "torch_cuda": torch.version.cuda,
    "device_found": torch.cuda.is_available(), "with_cuda": bool(_extension._C.with_cuda),
    "file": _extension._C.__file__, "ops": ops}))
"""


def make_environment(folder: Path, torch_version: str) -> Path:
    """The Python of a virtual environment with that torch."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        packages = [f"torch=={torch_version}", *BUILD_TOOLS, *DISASSEMBLERS]
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    return python


def build(python: Path, folder: Path, environment: dict[str, str]) -> Path:
    """Builds the package under `folder`; the path that has it."""
    command = [python, "setup.py", "-q", "build", "--build-base", folder]
    subprocess.run(command, check=True, cwd=ROOT, env=environment)
    (library,) = folder.glob("lib*")
    return library


def registered_by_sources() -> list[str]:
    """The ops that the bindings in csrc/cuda implement."""
    found: set[str] = set()
    for binding in (ROOT / "csrc" / "cuda").glob("*.cpp"):
        found.update(re.findall(r'm\.impl\("(\w+)"', binding.read_text()))
    return sorted(found)


def embedded(library: Path, cuobjdump: str) -> dict[str, list[str]]:
    """The architectures of the machine code and of the PTX in a library."""

    def listed(option: str) -> list[str]:
        text = subprocess.check_output([cuobjdump, option, library], text=True)
        return [f"sm_{n}" for n in sorted({int(n) for n in re.findall(r"\.sm_(\d+)\.", text)})]

    return {"sass": listed("-lelf"), "ptx": listed("-lptx")}


def failures(record: dict[str, Any]) -> list[str]:
    """What is not as it must be."""
    wanted = [f"sm_{number}" for number in architectures()]
    found = []
    if not record["with_cuda"]:
        found.append("the extension was built without CUDA")
    found += [
        f"{op} has no CUDA kernel" for op, keys in record["ops"].items() if "CUDA" not in keys
    ]
    missing = [name for name in wanted if name not in record["embedded"]["sass"]]
    if missing:
        found.append(f"no machine code for {', '.join(missing)}")
    if record["embedded"]["ptx"] != wanted[-1:]:
        found.append(f"PTX must be that of {wanted[-1]}, got {record['embedded']['ptx']}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=Path, required=True)
    parser.add_argument("--torch", default="2.14.1")
    parser.add_argument("--json", type=Path, default=ROOT / "bench/results/cuda-build.json")
    given = parser.parse_args()
    python = make_environment(given.venv.resolve(), given.torch)
    numbers = ";".join(f"{number // 10}.{number % 10}" for number in architectures())
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "PATH": f"{python.parent}:{os.environ['PATH']}",
            "CUDA_HOME": str(cuda_home()),
            "TORCH_CUDA_ARCH_LIST": f"{numbers}+PTX",
            "DARTS_FAST_CUDA": "1",
        }
        start = time.monotonic()
        library = build(python, Path(folder), environment)
        seconds = time.monotonic() - start
        record: dict[str, Any] = json.loads(
            subprocess.check_output(
                [python, "-c", _INSPECT, *registered_by_sources()],
                cwd=folder,
                env={**environment, "PYTHONPATH": str(library)},
            )
        )
        file = Path(record.pop("file"))
        cuobjdump = find_tool("cuobjdump", python)
        record["embedded"] = embedded(file, cuobjdump) if cuobjdump else {"sass": [], "ptx": []}
        record["bytes"] = file.stat().st_size
    record.update(nvcc=nvcc_version(), build_seconds=round(seconds), failures=failures(record))
    given.json.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))
    return 1 if record["failures"] else 0


if __name__ == "__main__":
    if shutil.which("nvcc") is None:
        sys.exit("build_check: needs nvcc")
    sys.exit(main())
