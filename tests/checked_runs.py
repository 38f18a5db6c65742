# SPDX-License-Identifier: Apache-2.0
"""Tests of emulated CUDA kernels, run again in a process in which a build checks the kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from simt_build import ROOT, SANITIZER_OPTIONS, Build

# Environment variables: what checks the kernels, and for which architecture they are compiled.
_BUILD, _ARCHITECTURE = "DARTS_TEST_BUILD", "DARTS_TEST_ARCHITECTURE"


def build_of_process() -> Build:
    """What checks the kernels here."""
    return Build(os.environ.get(_BUILD, "plain"))


def architecture_of_process() -> int:
    """As which kernels are compiled here: 80 stands for all from sm_80 on."""
    return int(os.environ.get(_ARCHITECTURE, "80"))


def under_every_check(test: Callable[..., None]) -> Callable[..., None]:
    """A test of a `build`, for every check; each takes minutes, more beside other work."""
    each = pytest.mark.parametrize("build", [Build.ADDRESS, Build.THREAD, Build.COUNT])
    return pytest.mark.slow(pytest.mark.timeout(3600)(each(test)))


def run_checked(build: Build, *files: str, architecture: int = 80) -> None:
    """All tests of the files, the slow ones too; skips where the check has no runtime.

    Not those that call gradcheck: they run kernels thousands of times, on sizes that others have.
    """
    preload = build.preload()
    if preload is None:
        pytest.skip(f"the compiler has no shared runtime of the {build.value} sanitizer")
    environment = {**os.environ, **SANITIZER_OPTIONS, **preload, _BUILD: build.value}
    environment[_ARCHITECTURE] = str(architecture)
    # Without -s the report of a process that ends at once would be lost.
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-n", "0", "-p", "no:cacheprovider"]
    command += ["-m", "", "-k", "not under_every_check and not gradcheck", *files]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout
