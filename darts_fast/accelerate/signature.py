# SPDX-License-Identifier: Apache-2.0
"""What a module computes apart from the values in it: modules with one signature need one proof."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import nn

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type, torch.dtype, torch.Size)


def signature(module: nn.Module) -> Hashable | None:
    """Equal for modules whose trees of classes, names, shapes and plain attributes are equal.

    None where an attribute is anything else: such a module is only like itself.
    """
    try:
        return tuple(
            (name, type(part), type(part).forward, _attributes(part))
            for name, part in module.named_modules()
        )
    except _OtherValueError:
        return None


class _OtherValueError(Exception):
    pass


def _attributes(part: nn.Module) -> Hashable:
    drawn = {"_parameters"}  # what a proof puts random values into
    if isinstance(part, nn.BatchNorm2d):
        drawn.add("_buffers")
    return tuple(
        (name, _frozen(value, shapes_only=name in drawn))
        for name, value in vars(part).items()
        if name not in ("training", "_modules")
    )


def _frozen(value: Any, *, shapes_only: bool = False) -> Hashable:
    if isinstance(value, _PLAIN):
        return type(value), value
    if isinstance(value, (list, tuple, set, frozenset)):
        return type(value), tuple(_frozen(item, shapes_only=shapes_only) for item in value)
    if isinstance(value, dict):
        return tuple(
            (_frozen(key), _frozen(item, shapes_only=shapes_only)) for key, item in value.items()
        )
    if shapes_only and isinstance(value, torch.Tensor):
        return value.shape
    raise _OtherValueError
