# SPDX-License-Identifier: Apache-2.0
"""Autocast of native ops: they take any precision and compute in float32.

On the CPU tensors of 16 bits become float32 first. On a CUDA device the kernels read and write maps
in autocast's own dtype, with everything else in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Arguments = tuple[Any, ...]

_LOWER = (torch.float16, torch.bfloat16)


def register_autocast(
    name: str,
    in_bfloat16: Callable[[Arguments], Arguments] = lambda arguments: arguments,
    stored_whole: Callable[[Arguments], Arguments] = lambda arguments: arguments,
) -> None:
    """Registers the autocast of an op whose first output has the dtype of its first tensor.

    Tensors of float16 and bfloat16 become float32, and the op computes in that. Under bfloat16 on
    the CPU its first output becomes bfloat16, as that of the modules it stands for; on a CUDA
    device, see `register_cuda_autocast`. float64 stays. Gradients come back through the
    conversions, each in its tensor's own dtype.

    Args:
        name: of the op, with namespace.
        in_bfloat16: what to call the op with under bfloat16 on the CPU, from its converted
            arguments.
        stored_whole: the same on a CUDA device, where maps have 16 bits.
    """
    op = _op_of(name)

    @torch.library.impl(name, "AutocastCPU")
    def cpu(*arguments: Any) -> tuple[Any, ...]:
        low = torch.get_autocast_dtype("cpu") == torch.bfloat16
        with torch.autocast("cpu", enabled=False):
            single = tuple(_in_float32(argument) for argument in arguments)
            if not low:
                return tuple(op(*single))
            first, *rest = op(*in_bfloat16(single))
            return first if first.dtype == torch.float64 else first.bfloat16(), *rest

    register_cuda_autocast(name, stored_whole)


def register_cuda_autocast(
    name: str, stored_whole: Callable[[Arguments], Arguments] = lambda arguments: arguments
) -> None:
    """Registers the autocast of an op on a CUDA device alone.

    The op's first argument, its maps, becomes autocast's dtype, and with it the outputs that are
    maps. All else of float16 and bfloat16 becomes float32. float64 stays. Gradients come back
    through the conversions, each in its tensor's own dtype.

    Args: name, stored_whole, see `register_autocast`.
    """
    op = _op_of(name)

    @torch.library.impl(name, "AutocastCUDA")
    def cuda(maps: Any, *arguments: Any) -> tuple[Any, ...]:
        dtype = torch.get_autocast_dtype("cuda")
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_CUDA):
            single = tuple(_in_float32(argument) for argument in arguments)
            if (maps if isinstance(maps, Tensor) else maps[0]).dtype == torch.float64:
                return tuple(op(maps, *single))
            stored = _cast(maps, (*_LOWER, torch.float32), dtype)
            return tuple(op(*stored_whole((stored, *single))))


_AUTOCAST_CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)


def _op_of(name: str) -> Any:
    namespace, _, short = name.partition("::")
    return getattr(getattr(torch.ops, namespace), short).default


def _in_float32(value: Any) -> Any:
    return _cast(value, _LOWER, torch.float32)


def _cast(value: Any, given: tuple[torch.dtype, ...], to: torch.dtype) -> Any:
    """Tensors of the given dtypes, also those of a list, as `to`."""
    if isinstance(value, Tensor):
        return value.to(to) if value.dtype in given else value
    return [_cast(x, given, to) for x in value] if isinstance(value, (list, tuple)) else value
