# SPDX-License-Identifier: Apache-2.0
"""What a module computes apart from the values in it: modules with one signature need one proof."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Hashable
from types import ModuleType
from typing import Any

import torch
from torch import nn

from darts_fast.nn.code import Code, code_of
from darts_fast.nn.entries import MISSING, Classes, is_plain

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type, torch.dtype, torch.Size)


def signature(module: nn.Module) -> Hashable | None:
    """Equal for modules whose trees of classes, names, shapes and plain attributes are equal.

    None where an attribute is anything else: such a module is only like itself.
    """
    try:
        return tuple(
            (name, type(part), _read_by(type(part)), _attributes(part))
            for name, part in module.named_modules()
        )
    except _OtherValueError:
        return None


class _OtherValueError(Exception):
    pass


def _read_by(kind: type) -> Hashable:
    """What calls of a module of this class read apart from the module itself, as it is now."""
    fixed, others = _values(code_of(kind))
    return fixed, tuple(map(_frozen, others))


@functools.lru_cache(maxsize=1024)
def _values(code: Code) -> tuple[Hashable, tuple[Any, ...]]:
    """Values that cannot change while they are there, and others."""
    inside = (value for _, value in code.cells)
    outside = (value for _, _, value in code.globals.values())
    of_class = (value for _, value in Classes([code.kind]).items())
    fixed: list[Any] = [*code.functions.values()]
    others: list[Any] = []
    for value in (*inside, *outside, *of_class):
        is_code = inspect.isroutine(value) or inspect.isdatadescriptor(value)
        is_fixed = value is MISSING or is_code or isinstance(value, ModuleType) or is_plain(value)
        (fixed if is_fixed else others).append(value)
    return tuple(fixed), tuple(others)


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
