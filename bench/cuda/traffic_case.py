# SPDX-License-Identifier: Apache-2.0
"""A call whose bytes are counted, and the sweeps that it is made of."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from toolkit import ROOT

sys.path.insert(0, str(ROOT / "tests"))

from simulator import Simulated

TARGET = 1.3  # times the minimum


@dataclass(frozen=True)
class Sweep:
    """A part of a case: its kernels, and what it must move.

    Of a kernel that sweeps take turns with, a name ends in "/0" for the first of two launches and
    in "/1" for the second.
    """

    name: str
    kernels: tuple[str, ...]
    minimum: int
    """Bytes, each map that the sweep needs once."""


@dataclass(frozen=True)
class Case:
    """One call whose kernels are counted."""

    name: str
    family: str
    make: Callable[[Path], Simulated]
    call: Callable[[Simulated], object]
    sweeps: tuple[Sweep, ...]
