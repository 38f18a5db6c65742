# SPDX-License-Identifier: Apache-2.0
"""The CPU capabilities that tests run on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import darts_fast

CAPABILITIES = ("DEFAULT", "AVX2", "AVX512")


@contextmanager
def running_on(backend: str) -> Iterator[str]:
    """Runs a block on the kernels of "cpu[CAPABILITY]"; skips the test if this machine has none."""
    capability = backend.removeprefix("cpu[").removesuffix("]")
    if capability not in darts_fast.available_cpu_capabilities():
        pytest.skip(f"{capability} is not in this build or not on this CPU")
    before = darts_fast.cpu_capability()
    darts_fast.set_cpu_capability(capability)
    yield backend
    darts_fast.set_cpu_capability(before)
