# SPDX-License-Identifier: Apache-2.0
"""Seeds: equal seeds give equal draws, streams differ, and a saved state continues exactly."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from darts_fast.seeding import generator, rng_state, seed_everything, set_rng_state


def draws() -> list[float]:
    """Draws of all global generators; the normal ones keep a second value for the next call."""
    return [
        random.random(),
        random.gauss(0, 1),
        float(np.random.rand()),  # noqa: NPY002
        float(np.random.randn()),  # noqa: NPY002
        torch.rand(()).item(),
        torch.randn(()).item(),
    ]


def test_a_seed_decides_all_draws() -> None:
    runs = []
    for seed in (5, 5, 6):
        seed_everything(seed)
        runs.append(draws())
    assert runs[0] == runs[1]
    assert all(a != b for a, b in zip(runs[0], runs[2], strict=True))


@pytest.mark.parametrize("before", [0, 1])
def test_a_saved_state_continues_exactly(tmp_path: Path, before: int) -> None:
    seed_everything(1)
    for _ in range(before):
        draws()
    torch.save(rng_state(), tmp_path / "state.pt")
    expected = [draws() for _ in range(3)]
    seed_everything(99)
    set_rng_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [draws() for _ in range(3)] == expected


def test_streams_of_a_seed() -> None:
    def numbers(seed: int, stream: str) -> list[int]:
        return torch.randint(1000, (20,), generator=generator(seed, stream)).tolist()

    assert numbers(3, "train") == numbers(3, "train")
    assert numbers(3, "train") != numbers(3, "valid")
    assert numbers(3, "train") != numbers(4, "train")
    before = torch.get_rng_state()
    generator(3, "train")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range(seed: int) -> None:
    for function in (seed_everything, generator):
        with pytest.raises(ValueError, match=rf"seed: must be from 0 to 2\*\*32 - 1, got {seed}"):
            function(seed)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_state_continues_exactly() -> None:
    seed_everything(1)
    state = rng_state()
    expected = torch.rand(5, device="cuda")
    set_rng_state(state)
    assert torch.equal(torch.rand(5, device="cuda"), expected)
