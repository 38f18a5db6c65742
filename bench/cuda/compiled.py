# SPDX-License-Identifier: Apache-2.0
"""Kernel files compiled by nvcc per architecture, and what the assembler says of every kernel."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from toolkit import FLAGS, ROOT

# Errors of the host's pass. Of the other, warnings of double arithmetic are told apart by kernel.
HOST = ("-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra,-Werror")
PTXAS = ("-Xptxas", "-v,-warn-spills,-warn-lmem-usage,-warn-double-usage")

_USAGE = re.compile(
    r"Compiling entry function '(\w+)' for 'sm_\d+\w*'\n"
    r"(?:ptxas info\s*: Function properties for \w+\n)?"
    r"\s*(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n"
    r"ptxas info\s*: Used (\d+) registers(?:.*?(\d+) bytes smem)?"
)
_DOUBLE = re.compile(r"\.ptx, line (\d+); warning\s*: Program is doing double precision")
_ENTRY = re.compile(r"\.entry (\w+)\(")
_THREADS = re.compile(r"\.(?:maxntid|reqntid) (\d+)(?:, (\d+))?(?:, (\d+))?")


@dataclass
class Kernel:
    """One kernel for one architecture."""

    symbol: str
    name: str
    """As "node_sum_merge<float>"."""
    architecture: int
    registers: int
    stack: int
    spilled: int
    """Bytes stored and loaded."""
    shared: int
    threads: int
    """Of a block, by its launch bounds."""
    doubles: int
    """Lines of PTX that do arithmetic in double precision."""


@dataclass
class Compiled:
    """One file for one architecture."""

    source: Path
    architecture: int
    cubin: Path
    kernels: list[Kernel] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    """Other than of double arithmetic."""


def short_names(symbols: Sequence[str]) -> dict[str, str]:
    """symbol -> "kernel<arguments>", without namespaces and parameters."""
    command = ["c++filt", *symbols]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return {symbol: _short(line) for symbol, line in zip(symbols, lines, strict=True)}


def _short(name: str) -> str:
    name = re.sub(r"\(anonymous namespace\)::|^void ", "", name)
    depth = 0
    for i, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            name = name[:i]
            break
    head, bracket, arguments = name.partition("<")
    return re.sub(r"\w+::", "", head) + bracket + re.sub(r"\w+::", "", arguments)


def _nvcc(*arguments: object, cwd: Path) -> str:
    command = ["nvcc", *FLAGS, *(str(argument) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{(done.stdout + done.stderr)[-8000:]}")
    return done.stdout + done.stderr


def compile_file(source: Path, architecture: int, folder: Path) -> Compiled:
    """Machine code of a kernel file; stops the run at a warning of the compiler."""
    folder = folder / f"{source.stem}_{architecture}"
    folder.mkdir()
    cubin = folder / "kernels.cubin"
    command = (*PTXAS, f"-arch=sm_{architecture}", "--keep", "--keep-dir", folder)
    log = _nvcc(*command, "-cubin", source, "-o", cubin, cwd=folder)
    (ptx,) = folder.glob("*.ptx")
    return read_log(source, architecture, cubin, log, ptx.read_text())


def read_log(source: Path, architecture: int, cubin: Path, log: str, ptx: str) -> Compiled:
    """What the assembler said (`log`) about the kernels of `ptx`."""
    done = Compiled(source, architecture, cubin)
    starts = {m[1]: ptx.count("\n", 0, m.start()) + 1 for m in _ENTRY.finditer(ptx)}
    blocks = {symbol: _threads(ptx, symbol) for symbol in starts}
    doubles: dict[str, int] = dict.fromkeys(starts, 0)
    for line in {int(number) for number in _DOUBLE.findall(log)}:
        inside = [symbol for symbol, start in starts.items() if start <= line]
        doubles[max(inside, key=starts.__getitem__)] += 1
    names = short_names(list(starts))
    for found in _USAGE.finditer(log):
        symbol = found[1]
        stack, stores, loads, registers, shared = (
            int(number or 0) for number in found.groups()[1:]
        )
        done.kernels.append(
            Kernel(
                *(symbol, names[symbol], architecture, registers, stack, stores + loads),
                *(shared, blocks[symbol], doubles[symbol]),
            )
        )
    if len(done.kernels) != len(starts):
        raise SystemExit(
            f"{source.name}, sm_{architecture}: nvcc reports {len(done.kernels)} kernels "
            f"of the {len(starts)} in its PTX"
        )
    done.warnings = [
        line
        for line in log.splitlines()
        if "warning" in line.lower() and "double precision computations" not in line
    ]
    return done


def _threads(ptx: str, symbol: str) -> int:
    header = ptx.partition(f".entry {symbol}(")[2].partition("{")[0]
    found = _THREADS.search(header)
    if found is None:
        raise SystemExit(f"{symbol}: has no __launch_bounds__, so its occupancy is unknown")
    x, y, z = (int(number or 1) for number in found.groups())
    return x * y * z


def compile_all(
    sources: Iterable[Path], architectures: Sequence[int], folder: Path, jobs: int = 2
) -> list[Compiled]:
    """Every file for every architecture, and once with its host code; two nvcc at a time."""
    sources = list(sources)

    def host(source: Path) -> None:
        target = folder / f"{source.stem}.o"
        _nvcc(*HOST, f"-arch=sm_{architectures[0]}", "-c", source, "-o", target, cwd=ROOT)

    with ThreadPoolExecutor(jobs) as pool:
        hosts = [pool.submit(host, source) for source in sources]
        pairs = [(source, number) for source in sources for number in architectures]
        done = list(pool.map(lambda pair: compile_file(*pair, folder), pairs))
        for job in hosts:
            job.result()
    return done
