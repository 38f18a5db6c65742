# SPDX-License-Identifier: Apache-2.0
"""Seeds: the global random states of Python, NumPy and torch, and named streams of a seed."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["draw_seed", "generator", "rng_state", "seed_everything", "seeded", "set_rng_state"]


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch (all devices).

    Raises ValueError unless 0 <= seed < 2**32, the range of NumPy.
    """
    _check(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (the global state is meant)
    torch.manual_seed(seed)


def generator(seed: int, stream: str = "") -> torch.Generator:
    """A new CPU generator for one purpose: other streams of the same seed are independent of it.

    Raises ValueError unless 0 <= seed < 2**32.
    """
    _check(seed)
    # Seeding two generators with the same number would give both the same draws.
    digest = hashlib.sha256(f"{seed} {stream}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def draw_seed() -> int:
    """From torch's generator, which goes on with draws that are independent of that seed's."""
    return int(torch.randint(2**62, ()))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, torch's global generators start from `seed`; afterwards they are as they were."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def rng_state() -> dict[str, Any]:
    """The global states, in tensors and plain values that torch.load reads with weights_only."""
    numpy: dict[str, Any] = np.random.get_state(legacy=False)  # noqa: NPY002
    keys = torch.from_numpy(numpy["state"]["key"].astype(np.int64))
    position, has_gauss, gauss = numpy["state"]["pos"], numpy["has_gauss"], numpy["gauss"]
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (keys, position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Go back to `state` of rng_state; the states of CUDA devices are set where both have them."""
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    keys, position, has_gauss, gauss = state["numpy"]
    key = keys.cpu().numpy().astype(np.uint32)
    np.random.set_state(("MT19937", key, position, has_gauss, gauss))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available():
        for device, cuda in enumerate(state.get("cuda", [])[: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(cuda.cpu(), device)


def _check(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed: must be from 0 to 2**32 - 1, got {seed}")
