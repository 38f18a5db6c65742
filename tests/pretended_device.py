# SPDX-License-Identifier: Apache-2.0
"""A CUDA device that is not there: its tensors say that they are on cuda:0, and have real values.

Every op runs on the CPU, and its results are there again. As on a device, an op refuses tensors of
both sides, and what brings values to the host is counted. Without gradients: torch without CUDA
ends the process when autograd meets such a tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

_THERE, _HERE = torch.device("cuda:0"), torch.device("cpu")


class There(Tensor):
    """A tensor on the device; `values` are its values."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> There:
        # To torch's C++ code it has no device: it would ask CUDA to make that the current one.
        there: There = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, values.shape, strides=values.stride(), dtype=values.dtype, device="meta"
        )
        there.values = values
        return there

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return _THERE

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func}: called outside of the pretended device")


class PretendedDevice(TorchDispatchMode):
    """The device, while it is entered.

    Attributes:
        fetched: how often values came to the host.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fetched = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        flat, form = tree_flatten((args, kwargs or {}))
        tensors = [x for x in flat if isinstance(x, Tensor)]
        there = {id(x.values): x for x in tensors if isinstance(x, There)}
        wanted = (kwargs or {}).get("device")
        if wanted is None and there:
            _check_sides(func, tensors)
        to = wanted or (_THERE if there else _HERE)
        inner_args, inner_kwargs = tree_unflatten([_value(x) for x in flat], form)
        with no_dispatch():
            result = func(*inner_args, **inner_kwargs)
        if to == _HERE or isinstance(result, (bool, int, float)):
            self.fetched += bool(there)
            return result
        # An op that returns what it was given returns the same tensor.
        return tree_map(
            lambda x: there.get(id(x), There(x)) if isinstance(x, Tensor) else x, result
        )


def _value(x: object) -> object:
    if isinstance(x, There):
        return x.values
    return _HERE if isinstance(x, torch.device) else x


def _check_sides(func: Any, tensors: list[Tensor]) -> None:
    """Only numbers, and the tables of what is active, may be in host memory."""
    native = func.namespace == "darts_fast"
    for x in tensors:
        is_table = native and x.dtype == torch.bool
        assert not (is_table and isinstance(x, There)), f"{func}: a table on the device"
        here = not isinstance(x, There) and x.dim() > 0
        assert not here or is_table, f"{func}: a tensor of {tuple(x.shape)} in host memory"


def move_there(net: nn.Module) -> nn.Module:
    """The module with parameters and buffers on the device, without gradients."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with pretended_device():
            return net.requires_grad_(False)._apply(lambda x: There(x.detach()))
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


@contextmanager
def pretended_device() -> Iterator[PretendedDevice]:
    """Below the device, a mode in whose presence torch does not look for a driver."""
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), PretendedDevice() as device:
        yield device
