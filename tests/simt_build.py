# SPDX-License-Identifier: Apache-2.0
"""Compiles CUDA kernel files with g++ against the host emulation in tests/simt."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from enum import Enum
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMPILER = os.environ.get("CXX", "g++")
FLAGS = ["-std=c++20", "-O2", "-g1", "-fPIC", "-I", "tests/simt", "-I", "csrc"]
WARNINGS = ["-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror"]
TOOLS = (COMPILER, "objcopy")
# Python and torch keep what they have to the end, and are not instrumented.
SANITIZER_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0",
    "TSAN_OPTIONS": "ignore_noninstrumented_modules=1 halt_on_error=1 atexit_sleep_ms=0",
}

_ADDRESS = [
    "-fsanitize=address,undefined",
    "-fno-sanitize=object-size",  # address knows more: the variable, and how far behind it
    "-fno-sanitize-recover=all",
]


class Build(Enum):
    """What the emulated kernels are checked by, besides the emulation itself."""

    PLAIN = "plain"
    ADDRESS = "address"
    """AddressSanitizer and UndefinedBehaviorSanitizer."""
    THREAD = "thread"
    """ThreadSanitizer, for which every CUDA thread is a thread."""
    COUNT = "count"
    """Global bytes counted, and conflicts between blocks found (tests/simt/traffic.cpp)."""

    @property
    def kernels(self) -> list[str]:
        """How kernels are compiled; in a build that counts, for the sanitizer's hooks alone."""
        flags = {Build.ADDRESS: _ADDRESS, Build.PLAIN: []}
        return flags.get(self, ["-fsanitize=thread"])

    @property
    def scheduler(self) -> list[str]:
        """How the scheduler is compiled; the thread sanitizer must not see its bookkeeping."""
        return {Build.ADDRESS: _ADDRESS, Build.THREAD: ["-DSIMT_RACES"]}.get(self, [])

    @property
    def link(self) -> list[str]:
        return [] if self is Build.COUNT else self.kernels

    @property
    def scheduler_sources(self) -> list[str]:
        files = ["simt", "fragments", "report", "fibers", "names"]
        files += ["traffic"] if self is Build.COUNT else []
        return [f"tests/simt/{name}.cpp" for name in files]

    def preload(self) -> dict[str, str] | None:
        """What Python needs besides, to load such a library; None where it cannot be had.

        A sanitizer's runtime must be there before all else.
        """
        runtime = {Build.ADDRESS: "libasan.so", Build.THREAD: "libtsan.so"}.get(self)
        if runtime is None:
            return {}
        paths = [_runtime(name) for name in (runtime, "libstdc++.so")]
        found = all(Path(path).is_absolute() for path in paths)
        return {"LD_PRELOAD": " ".join(paths)} if found else None


def _runtime(name: str) -> str:
    command = [COMPILER, f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def missing_tools() -> list[str]:
    """What the emulation needs and this machine lacks."""
    return [tool for tool in TOOLS if shutil.which(tool) is None]


def run_tool(*command: object) -> None:
    """Runs a command in the root of the checkout; its output is the error."""
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


def compile_kernels(
    sources: Iterable[Path], folder: Path, build: Build = Build.PLAIN, more: Iterable[str] = ()
) -> list[Path]:
    """The objects of kernel files and of the scheduler that runs them.

    A kernel file has no variables but its `__shared__` ones; g++ ignores a section attribute on
    variables of templates, so they are moved to the section that the scheduler fills afterwards.

    Args: more, flags for the kernel files besides those of the build.
    """
    objects = []
    for source in sources:
        objects.append(folder / f"{source.stem}_device.o")
        flags = [*FLAGS, *WARNINGS, *build.kernels, *more]
        run_tool(COMPILER, *flags, "-x", "c++", "-c", source.relative_to(ROOT), "-o", objects[-1])
        section = ".bss=simt_shared,alloc,load,data,contents"
        run_tool("objcopy", "--rename-section", section, objects[-1])
    for source in build.scheduler_sources:
        objects.append(folder / f"{Path(source).stem}.o")
        flags = [*FLAGS, *WARNINGS, *build.scheduler]
        run_tool(COMPILER, *flags, "-c", source, "-o", objects[-1])
    return objects


def build_program(source: Path, folder: Path, build: Build = Build.PLAIN) -> Path:
    """A kernel file with its own `main` as a program."""
    program = folder / source.stem
    objects = compile_kernels([source], folder, build)
    run_tool(COMPILER, *build.link, *objects, "-o", program)
    return program
