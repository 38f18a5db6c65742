# SPDX-License-Identifier: Apache-2.0
"""Instructions of compiled kernels, counted by kind, from what cuobjdump prints of a cubin."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path

# Kind -> what its opcodes begin with. The first that fits counts.
KINDS = {
    "load global": ("LDG", "LD."),
    "store global": ("STG", "ST."),
    "load shared": ("LDS", "LDSM"),
    "store shared": ("STS",),
    "local memory": ("LDL", "STL"),
    "constant": ("LDC", "ULDC"),
    "atomic": ("ATOM", "RED"),
    "async copy": ("LDGSTS", "UBLKCP", "UTMA"),
    "matrix": ("HMMA", "IMMA", "DMMA", "QMMA", "OMMA", "HGMMA", "QGMMA", "UTC"),
    "float": ("FFMA", "FADD", "FMUL", "FSETP", "FSEL", "FMNMX", "FCHK"),
    "half": ("HFMA2", "HADD2", "HMUL2", "HSETP2", "HMNMX2"),
    "double": ("DFMA", "DADD", "DMUL", "DSETP", "DMNMX"),
    "special": ("MUFU",),
    "convert": ("F2F", "F2I", "I2F", "F2FP", "I2FP"),
    "shuffle and vote": ("SHFL", "VOTE", "MATCH", "REDUX"),
    "barrier": ("BAR", "WARPSYNC", "MEMBAR"),
    "branch": ("BRA", "BSSY", "BSYNC", "BREAK", "CALL", "RET", "EXIT", "JMP"),
    "integer": (
        *("IMAD", "IADD", "UIADD", "UIMAD", "LEA", "ULEA", "LOP", "ULOP", "SHF", "USHF", "ISETP"),
        *("UISETP", "IABS", "IMNMX", "VIADD", "VIMNMX", "PRMT", "UPRMT", "SEL", "USEL", "FLO"),
        *("POPC", "PLOP", "UPLOP", "SGXT", "BMSK", "IDP", "ISCADD"),
    ),
    "move": ("MOV", "UMOV", "S2R", "S2UR", "CS2R", "R2UR", "P2R", "R2P", "R2B", "B2R"),
}
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", re.M)


def kind_of(opcode: str) -> str:
    """The kind of an opcode with its modifiers, as "LDG.E.128"; else "other"."""
    fits = [
        (len(start), kind)
        for kind, starts in KINDS.items()
        for start in starts
        if opcode.startswith(start)
    ]
    return max(fits)[1] if fits else "other"


def width_of(opcode: str) -> int:
    """Bits that a memory access moves per thread; 32 unless a modifier says otherwise."""
    found = re.search(r"\.(?:[US]?(8|16|32|64|128|256))\b", opcode)
    return int(found[1]) if found else 32


def count(text: str) -> dict[str, Counter[str]]:
    """Function -> opcodes with modifiers, of `cuobjdump -sass`; padding left out."""
    found = {}
    for part in text.split("Function : ")[1:]:
        symbol, _, body = part.partition("\n")
        opcodes = Counter(_INSTRUCTION.findall(body))
        del opcodes["NOP"]
        found[symbol.strip()] = opcodes
    return found


def summary(opcodes: Counter[str]) -> dict[str, object]:
    """Instructions, their mix by kind, and the widest access to global memory each way."""
    mix: Counter[str] = Counter()
    width = {"load global": 0, "store global": 0}
    for opcode, number in opcodes.items():
        kind = kind_of(opcode)
        mix[kind] += number
        if kind in width:
            width[kind] = max(width[kind], width_of(opcode))
    return {
        "instructions": opcodes.total(),
        "load_bits": width["load global"],
        "store_bits": width["store global"],
        "mix": dict(mix.most_common()),
    }


def read(cubin: Path, cuobjdump: str) -> dict[str, dict[str, object]]:
    """Function -> its summary."""
    text = subprocess.check_output([cuobjdump, "-sass", cubin], text=True)
    return {symbol: summary(opcodes) for symbol, opcodes in count(text).items()}
