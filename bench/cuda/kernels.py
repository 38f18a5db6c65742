# SPDX-License-Identifier: Apache-2.0
"""What nvcc makes of the CUDA kernels, held against recorded limits; needs no GPU.

    python bench/cuda/kernels.py             # compile for every architecture, fail on what is worse
    python bench/cuda/kernels.py --record    # write the record that later runs are held against

Fails on warnings, on registers that spill, on local memory, on double arithmetic in kernels that
are not for double, and where a kernel takes more registers or shared memory, lets fewer blocks run
together, has more instructions, fewer of tensor cores, more lines of arithmetic in double or
narrower accesses than recorded. Kernels for double have <double> in their name; those that finish
sums in double by design are listed in the record, under "sums_in_double". Instructions are read by
cuobjdump (PyPI: nvidia-cuda-cuobjdump); without it the run says so and checks the rest.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sass
from compiled import Compiled, Kernel, compile_all
from occupancy import occupancy
from toolkit import ROOT, architectures, find_tool, kernel_files, nvcc_version

RECORD = ROOT / "bench" / "results" / "cuda-kernels.json"
TABLE = RECORD.with_suffix(".md")
MORE_INSTRUCTIONS = 1.05  # times the record: the compiler's scheduling moves a few

Row = dict[str, Any]


def row(kernel: Kernel, instructions: dict[str, object]) -> Row:
    """What is recorded of a kernel for an architecture."""
    fit = occupancy(kernel.architecture, kernel.threads, kernel.registers, kernel.shared)
    return {
        "threads": kernel.threads,
        "registers": kernel.registers,
        "shared": kernel.shared,
        "doubles": kernel.doubles,
        "blocks_per_multiprocessor": fit.blocks,
        "occupancy": round(fit.share, 3),
        "limited_by": fit.limit,
        **instructions,
    }


def rows_of(files: Sequence[Compiled], cuobjdump: str | None) -> dict[str, dict[str, Row]]:
    """kernel -> "sm_90" -> row."""
    found: dict[str, dict[str, Row]] = {}
    for file in files:
        code = sass.read(file.cubin, cuobjdump) if cuobjdump else {}
        for kernel in file.kernels:
            place = found.setdefault(kernel.name, {})
            place[f"sm_{file.architecture}"] = row(kernel, code.get(kernel.symbol, {}))
    return dict(sorted(found.items()))


def defects(files: Sequence[Compiled], sums_in_double: Sequence[str]) -> list[str]:
    """What no kernel may have, whatever is recorded."""
    found = []
    for file in files:
        where = f"{file.source.name}, sm_{file.architecture}"
        found += [f"{where}: {line}" for line in file.warnings]
        for kernel in file.kernels:
            name = f"{where}: {kernel.name}"
            if kernel.spilled:
                found.append(f"{name} spills {kernel.spilled} bytes of registers")
            if kernel.stack:
                found.append(f"{name} has {kernel.stack} bytes of local memory")
            in_double = "<double" in kernel.name or kernel.name.split("<")[0] in sums_in_double
            if kernel.doubles and not in_double:
                found.append(f"{name} computes in double in {kernel.doubles} lines of PTX")
    return found


def worse(rows: dict[str, dict[str, Row]], recorded: dict[str, dict[str, Row]]) -> list[str]:
    """Where a kernel is worse than its record, or has none."""
    found = []
    for name, by_architecture in rows.items():
        for architecture, now in by_architecture.items():
            before = recorded.get(name, {}).get(architecture)
            if before is None:
                found.append(f"{name}, {architecture}: not recorded; run with --record")
                continue
            for key, sign in (
                ("registers", 1),
                ("shared", 1),
                ("doubles", 1),
                ("blocks_per_multiprocessor", -1),
                ("load_bits", -1),
                ("store_bits", -1),
            ):
                if key in now and key in before and sign * (now[key] - before[key]) > 0:
                    found.append(
                        f"{name}, {architecture}: {key} {now[key]}, recorded {before[key]}"
                    )
            if "mix" in now and "mix" in before:
                products, wanted = (r["mix"].get("matrix", 0) for r in (now, before))
                if products < wanted:
                    found.append(
                        f"{name}, {architecture}: {products} instructions of tensor cores, "
                        f"recorded {wanted}"
                    )
            limit = before.get("instructions", 0) * MORE_INSTRUCTIONS
            if limit and now.get("instructions", 0) > limit:
                found.append(
                    f"{name}, {architecture}: instructions {now['instructions']}, "
                    f"recorded {before['instructions']}"
                )
    return found


def as_json(record: dict[str, Any]) -> str:
    """The record's file: a line per kernel and architecture, so that a diff shows which moved."""
    kernels = ",\n".join(
        f"  {json.dumps(name)}: {{\n"
        + ",\n".join(f"   {json.dumps(key)}: {json.dumps(r)}" for key, r in by_architecture.items())
        + "\n  }"
        for name, by_architecture in record["kernels"].items()
    )
    rest = json.dumps({**record, "kernels": {}}, indent=1)
    return rest.replace('"kernels": {}', f'"kernels": {{\n{kernels}\n }}') + "\n"


def table(record: dict[str, Any]) -> str:
    """The record for readers, one line per kernel and architecture."""
    lines = [
        "# Kernels as nvcc compiles them",
        "",
        f"nvcc {record['nvcc']}; written by `python bench/cuda/kernels.py --record`. Blocks and",
        "occupancy are per multiprocessor, bits the widest access to global memory per thread,",
        "instructions of the whole kernel and the commonest kinds among them.",
        "",
        "| kernel | for | registers | shared | blocks | occupancy | limit | load, store bits "
        "| instructions |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, by_architecture in record["kernels"].items():
        for architecture, r in by_architecture.items():
            mix = r.get("mix", {})
            named = [kind for i, kind in enumerate(mix) if i < 5 or kind == "matrix"]
            kinds = ", ".join(f"{mix[kind]} {kind}" for kind in named)
            lines.append(
                f"| `{name}` | {architecture} | {r['registers']} | {r['shared']} "
                f"| {r['blocks_per_multiprocessor']} x {r['threads']} | {r['occupancy']:.2f} "
                f"| {r['limited_by']} | {r.get('load_bits', '-')}, {r.get('store_bits', '-')} "
                f"| {r.get('instructions', '-')}: {kinds} |"
            )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time")
    given = parser.parse_args(arguments)
    if shutil.which("nvcc") is None:
        print("kernels.py: skipped, nvcc is not installed")
        return 0
    cuobjdump = find_tool("cuobjdump")
    if given.record and cuobjdump is None:
        raise SystemExit("kernels.py: --record needs cuobjdump (pip install nvidia-cuda-cuobjdump)")
    record = json.loads(RECORD.read_text())
    with tempfile.TemporaryDirectory() as folder:
        files = compile_all(kernel_files(), architectures(), Path(folder), given.jobs)
        rows = rows_of(files, cuobjdump)
    found = defects(files, record["sums_in_double"])
    if given.record:
        record.update(nvcc=nvcc_version(), kernels=rows)
        RECORD.write_text(as_json(record))
        TABLE.write_text(table(record))
    elif record["nvcc"] == nvcc_version():
        found += worse(rows, record["kernels"])
    else:
        print(
            f"kernels.py: limits are of nvcc {record['nvcc']}, this is {nvcc_version()}: no limits"
        )
    for line in found:
        print(f"kernels.py: {line}")
    names = ", ".join(f"sm_{number}" for number in architectures())
    checked = "" if cuobjdump else "; no cuobjdump, so instructions were not read"
    print(f"kernels.py: {len(rows)} kernels for {names}, {len(found)} findings{checked}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
