# SPDX-License-Identifier: Apache-2.0
"""What the tests of all emulated CUDA kernels do alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from simulator import Order, Simulated
from torch import Tensor

Results = dict[str, Tensor]


@contextmanager
def emulated(simulated: Simulated, kernels: AbstractContextManager[None]) -> Iterator[None]:
    """Threads in a shuffled order; outputs and scratch start as NaN.

    Args: kernels, puts the emulated ones in the place of the CPU's.
    """
    simulated.set_order(Order.SHUFFLED)
    torch.use_deterministic_algorithms(True)  # fills what torch.empty allocates
    with kernels:
        yield
    torch.use_deterministic_algorithms(False)


def assert_same_bits_in_every_order(simulated: Simulated, results: Callable[[], Results]) -> None:
    """No result depends on the order in which threads and blocks run."""
    expected = results()
    for order, seed in [(Order.ASCENDING, 0), (Order.DESCENDING, 0), (Order.SHUFFLED, 1)]:
        simulated.set_order(order, seed)
        for name, value in results().items():
            assert torch.equal(value, expected[name]), f"{name}, {order.name}"


def launches_of(simulated: Simulated, call: Callable[[], object]) -> int:
    """Kernels that a call launches."""
    before = simulated.launches()
    call()
    return simulated.launches() - before


def shifted(x: Tensor) -> Tensor:
    """The same map, channels_last, one element behind an aligned address."""
    n, c, h, w = x.shape
    memory = torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(n, h, w, c).permute(0, 3, 1, 2)
    return memory.copy_(x.detach()).requires_grad_()
