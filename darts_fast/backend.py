# SPDX-License-Identifier: Apache-2.0
"""Which implementation runs: the fused kernels, or the plain PyTorch reference.

The environment variable DARTS_FAST_BACKEND=fused|reference sets it for a process (default: fused),
`use_backend` for a block of code.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

BACKENDS = ("fused", "reference")


def _checked(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source}: must be one of {', '.join(BACKENDS)}, got {name!r}")
    return name


# A plain global: torch.compile guards on its value, and cannot trace a context variable.
_current = _checked(os.environ.get("DARTS_FAST_BACKEND", "fused"), "DARTS_FAST_BACKEND")


def backend() -> str:
    """The backend in use: "fused" or "reference"."""
    return _current


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Runs a block with the backend `name`, in every thread of the process.

    Raises:
        ValueError: `name` is not "fused" or "reference".
    """
    global _current
    before, _current = _current, _checked(name, "use_backend")
    try:
        yield
    finally:
        _current = before
