# SPDX-License-Identifier: Apache-2.0
"""How many blocks of a kernel fit a multiprocessor: CUDA C++ Programming Guide, "Technical
Specifications per Compute Capability", and the allocation units of the CUDA Occupancy Calculator.
"""

from __future__ import annotations

from dataclasses import dataclass

WARP = 32
REGISTERS = 64 * 1024
REGISTER_UNIT = 256  # per warp
PARTITIONS = 4  # of a multiprocessor, each with a quarter of the registers


@dataclass(frozen=True)
class Multiprocessor:
    """Limits of one architecture; shared memory in bytes."""

    threads: int
    blocks: int
    shared: int
    shared_unit: int = 128
    reserved: int = 1024
    """Shared memory that the system takes of every block."""


MULTIPROCESSORS = {
    75: Multiprocessor(1024, 16, 64 * 1024, shared_unit=256, reserved=0),
    80: Multiprocessor(2048, 32, 164 * 1024),
    86: Multiprocessor(1536, 16, 100 * 1024),
    89: Multiprocessor(1536, 24, 100 * 1024),
    90: Multiprocessor(2048, 32, 228 * 1024),
    100: Multiprocessor(2048, 32, 228 * 1024),
    120: Multiprocessor(1536, 24, 100 * 1024),
}


@dataclass(frozen=True)
class Occupancy:
    """Of a kernel on a multiprocessor."""

    blocks: int
    share: float
    """Of the warps that a multiprocessor holds."""
    limit: str
    """What a further block would lack."""


def occupancy(architecture: int, threads: int, registers: int, shared: int) -> Occupancy:
    """For blocks of `threads`, `registers` per thread and `shared` bytes per block."""
    sm = MULTIPROCESSORS[architecture]
    warps = -(-threads // WARP)
    per_warp = -(-registers * WARP // REGISTER_UNIT) * REGISTER_UNIT
    warps_by_registers = REGISTERS // PARTITIONS // per_warp * PARTITIONS
    taken = -(-(shared + sm.reserved) // sm.shared_unit) * sm.shared_unit
    fits = {
        "blocks": sm.blocks,
        "threads": sm.threads // WARP // warps,
        "registers": warps_by_registers // warps,
        "shared": sm.shared // taken if taken else sm.threads,
    }
    blocks = min(fits.values())
    limit = "/".join(name for name, number in fits.items() if number == blocks)
    return Occupancy(blocks, blocks * warps / (sm.threads // WARP), limit)
