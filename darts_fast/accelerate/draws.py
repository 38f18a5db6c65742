# SPDX-License-Identifier: Apache-2.0
"""Random values for a proof: parameters, running statistics, maps and weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from darts_fast.accelerate.structure import NotTheSameError, Structure, describe_by_structure
from darts_fast.nn.watch import INTERNAL

# Sizes of the maps.
_IMAGES, _HEIGHT, _WIDTH = 2, 8, 6

_ANY_CHANNELS = 4


def draw_values(trial: nn.Module) -> None:
    """Parameters, buffers and other tensors without special values, such as a zero initialisation
    or a mask of ones, by which a proof could take them for what has no effect."""
    with torch.no_grad():
        for parameter in trial.parameters():
            parameter.requires_grad_(True)
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            parameter.normal_(std=fan_in**-0.5)
        for name, buffer in trial.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            elif buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
        for part in trial.modules():
            for name in vars(part).keys() - INTERNAL:
                _draw_inside(vars(part)[name])


def _draw_inside(value: Any) -> None:
    """Tensors that attributes hold: a mask of ones, say, must not pass for no mask."""
    if isinstance(value, Tensor) and value.is_floating_point():
        value.data.uniform_(0.5, 1.5)
    elif isinstance(value, dict):
        _draw_inside([*value.values()])
    elif isinstance(value, (list, tuple)):
        for item in value:
            _draw_inside(item)


def draw_inputs(
    trial: nn.Module, structure: Structure, native: Sequence[bool], *, zeros: bool
) -> list[Tensor]:
    """Maps and weights; with `zeros`, one weight of each edge is 0."""
    return [*_draw_maps(trial, structure, native), _draw_weights(structure.shape, zeros)]


def _draw_maps(trial: nn.Module, structure: Structure, native: Sequence[bool]) -> list[Tensor]:
    """Inputs of a method; twice as large before a factorized reduce."""
    sizes = [(structure.parts * _channels(structure, native), 1)]
    if structure.preprocess:
        described = [
            describe_by_structure(cast(nn.Module, trial._modules[name]))
            for name in structure.preprocess
        ]
        sizes = [
            (part.channels[0], part.stride)
            for part in described
            if part is not None and part.channels is not None
        ]
        if len(sizes) != 2 or sizes[1][1] != 1:
            raise NotTheSameError("its preprocessing is of another kind")
    return [
        torch.randn(_IMAGES, channels, stride * _HEIGHT, stride * _WIDTH, dtype=torch.float64)
        for channels, stride in sizes
    ]


def _channels(structure: Structure, native: Sequence[bool]) -> int:
    """Of what the operations see; where no native one says it, a convolution or norm does."""
    for op, is_native in zip(structure.ops, native, strict=True):
        parts = describe_by_structure(op) if is_native else None
        if parts is not None and parts.channels is not None:
            return parts.channels[0]
    for op in structure.ops:
        for part in op.modules():
            if isinstance(part, nn.Conv2d):
                return part.in_channels
            if isinstance(part, nn.BatchNorm2d):
                return part.num_features
    return _ANY_CHANNELS


def _draw_weights(shape: tuple[int, ...], zeros: bool) -> Tensor:
    """Weights of either sign, in every row one that is small or, with `zeros`, is 0."""
    weights = torch.randn(shape, dtype=torch.float64)
    for row in weights.view(-1, shape[-1]):
        place = int(torch.randint(shape[-1], ()))
        row[place] *= 0.0 if zeros else 1e-3
    return weights
