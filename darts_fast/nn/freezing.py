# SPDX-License-Identifier: Apache-2.0
"""Parameters that get no gradient, and statistics that do not move, for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

__all__ = ["Statistics", "frozen", "frozen_statistics"]


@contextmanager
def frozen(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """No gradient is computed for ``parameters`` inside; afterwards their flags are as they
    were.
    """
    flags = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in zip(parameters, flags, strict=True):
            parameter.requires_grad_(flag)


def frozen_statistics(net: nn.Module) -> AbstractContextManager[None]:
    """Inside, forwards of ``net`` compute what they would compute, and leave its buffers alone.

    Batch norms in training mode still normalise with the statistics of the batch, but their running
    statistics and counters do not move. Buffers of other modules are put back afterwards. An
    architecture step inside, which sets no weight, leaves weights and buffers bitwise as they were.
    """
    return Statistics(net).frozen()


class Statistics:
    """The buffers of a network as it is now, found once: `frozen_statistics` without the walk."""

    def __init__(self, net: nn.Module) -> None:
        modules = list(net.modules())
        self._norms = [module for module in modules if isinstance(module, _NormBase)]
        self._others = [
            buffer
            for module in modules
            if not isinstance(module, _NormBase)
            for buffer in module._buffers.values()
            if buffer is not None
        ]

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """See `frozen_statistics`."""
        tracking = [norm for norm in self._norms if norm.__dict__["track_running_stats"]]
        kept = [buffer.clone() for buffer in self._others]
        try:
            for norm in tracking:
                norm.__dict__["track_running_stats"] = False
            yield
        finally:
            for norm in tracking:
                norm.__dict__["track_running_stats"] = True
            with torch.no_grad():
                for buffer, value in zip(self._others, kept, strict=True):
                    buffer.copy_(value)
