# SPDX-License-Identifier: Apache-2.0
"""Fixtures of every test: one run per CPU capability, fixed seeds, threads put back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from capabilities import CAPABILITIES, running_on

from darts_fast.cli import main

Run = Callable[..., tuple[int, str, str]]


if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the processors are shared out to the workers already


@pytest.fixture(params=[f"cpu[{capability}]" for capability in CAPABILITIES])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs a test once per CPU capability that has kernels of its own for every op."""
    with running_on(request.param) as name:
        yield name


@pytest.fixture(params=[f"cpu[{capability}]" for capability in (*CAPABILITIES, "AVX512BF16")])
def bf16_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """As `backend`, and once on the kernels that multiply in bfloat16 under autocast."""
    with running_on(request.param) as name:
        yield name


@pytest.fixture
def darts_fast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Calls main() in an empty working directory; gives status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()

    def call(*arguments: str) -> tuple[int, str, str]:
        status = main(arguments)
        torch.set_num_threads(threads)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


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
