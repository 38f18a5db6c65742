# SPDX-License-Identifier: Apache-2.0
"""Autocast of native ops: they take any precision and compute in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Arguments = tuple[Any, ...]

_LOWER = (torch.float16, torch.bfloat16)


def register_autocast(
    name: str, in_bfloat16: Callable[[Arguments], Arguments] = lambda arguments: arguments
) -> None:
    """Registers the autocast of an op whose first output has the dtype of its first tensor.

    Tensors of float16 and bfloat16 become float32, and the op computes in that. Under bfloat16 on
    the CPU its first output becomes bfloat16, as that of the modules it stands for. Gradients come
    back through the conversions, each in its tensor's own dtype.

    Args:
        name: of the op, with namespace.
        in_bfloat16: what to call the op with under bfloat16, from its converted arguments.
    """
    namespace, _, short = name.partition("::")
    op = getattr(getattr(torch.ops, namespace), short).default

    @torch.library.impl(name, "AutocastCPU")
    def cpu(*arguments: Any) -> tuple[Any, ...]:
        low = torch.get_autocast_dtype("cpu") == torch.bfloat16
        with torch.autocast("cpu", enabled=False):
            single = tuple(_in_float32(argument) for argument in arguments)
            if not low:
                return tuple(op(*single))
            first, *rest = op(*in_bfloat16(single))
            return first if first.dtype == torch.float64 else first.bfloat16(), *rest

    torch.library.register_autocast(name, "cuda", torch.float32)


def _in_float32(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.dtype in _LOWER else value
    return [_in_float32(entry) for entry in value] if isinstance(value, (list, tuple)) else value
