# SPDX-License-Identifier: Apache-2.0
"""Checkpoints between the eight candidates of DARTS and the seven of DARTS-PT's space s5.

The seven are the eight without the first, `none`, so that every index of an operation differs by
one. Nothing else differs: `none` has no parameters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["alphas_to_darts", "alphas_to_darts_pt", "to_darts", "to_darts_pt"]

_T = TypeVar("_T")
_OP = re.compile(r"(.*\bcells\.\d+\._ops\.\d+\._ops\.)(\d+)(\..*)")
_NEVER = -1e4  # exp underflows to 0 in every dtype; unlike -inf it can be trained on
_LARGEST = {"to_darts": 6, "to_darts_pt": 7}


def to_darts_pt(state_dict: Mapping[str, _T]) -> dict[str, _T]:
    """A state_dict of a `darts` supernet with the keys of one of `darts_pt` in space s5.

    Raises ValueError for a key of no operation that has parameters in the space it comes from.
    """
    return _moved("to_darts_pt", state_dict, -1)


def to_darts(state_dict: Mapping[str, _T]) -> dict[str, _T]:
    """The reverse of `to_darts_pt`."""
    return _moved("to_darts", state_dict, 1)


def alphas_to_darts_pt(alphas: Tensor) -> Tensor:
    """[edges, 8] -> [edges, 7]: the softmax of the rest keeps its ratios.

    Raises ValueError for another shape.
    """
    _check("alphas_to_darts_pt", alphas, 8)
    return alphas[:, 1:].detach().clone()


def alphas_to_darts(alphas: Tensor) -> Tensor:
    """[edges, 7] -> [edges, 8] with -1e4 for `none`: its weight is exactly 0, the others stay.

    Raises ValueError for another shape.
    """
    _check("alphas_to_darts", alphas, 7)
    none = alphas.new_full((len(alphas), 1), _NEVER)
    return torch.cat([none, alphas.detach()], dim=1)


def _moved(name: str, state_dict: Mapping[str, _T], by: int) -> dict[str, _T]:
    moved = {}
    for key, value in state_dict.items():
        match = _OP.fullmatch(key)
        if match is not None:
            op, lowest = int(match[2]), max(0, -by)
            if not lowest <= op <= _LARGEST[name]:
                raise ValueError(
                    f"{name}: operations with parameters must be {lowest} to {_LARGEST[name]}, "
                    f"got {key}"
                )
            key = f"{match[1]}{op + by}{match[3]}"
        moved[key] = value
    return moved


def _check(name: str, alphas: Tensor, ops: int) -> None:
    if alphas.ndim != 2 or alphas.shape[1] != ops:
        raise ValueError(f"{name}: alphas must be [edges, {ops}], got {list(alphas.shape)}")
