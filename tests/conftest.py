# SPDX-License-Identifier: Apache-2.0
"""Fixtures of every test: one run per CPU capability, fixed seeds, threads put back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import darts_fast

CAPABILITIES = ("DEFAULT", "AVX2", "AVX512")


@pytest.fixture(params=[f"cpu[{capability}]" for capability in CAPABILITIES])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs a test once per CPU capability; skips those this build or machine lacks."""
    capability = request.param.removeprefix("cpu[").removesuffix("]")
    if capability not in darts_fast.available_cpu_capabilities():
        pytest.skip(f"{capability} is not in this build or not on this CPU")
    before = darts_fast.cpu_capability()
    darts_fast.set_cpu_capability(capability)
    yield request.param
    darts_fast.set_cpu_capability(before)


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """Every test starts from the same seed and leaves the thread count as it found it."""
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
