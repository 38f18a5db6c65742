# SPDX-License-Identifier: Apache-2.0
"""Candidate operations of a cell, and the native op's lists made from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from darts_fast import reference
from darts_fast.functional._checks import check_tensor
from darts_fast.functional._norms import _NORMS

_KINDS = {name: number for number, name in enumerate(reference.CELL_KINDS)}
_POOLS = ("max_pool", "avg_pool")
_KERNELS = {"separable": (3, 5, 7), "separable_twice": (3, 5, 7), "dense": (1, 3)}


class Norm(NamedTuple):
    """The batch norm behind a pool or a convolution (Ioffe and Szegedy, arXiv 1502.03167)."""

    kind: str = "batch"
    """"batch" (as BatchNorm in train mode), "running" (in eval mode), "none" (pools only)."""
    eps: float = 1e-5
    """Added to the variance."""
    gamma: Tensor | None = None
    """Scale [C]."""
    beta: Tensor | None = None
    """Shift [C]."""
    running_mean: Tensor | None = None
    """[C], read for "running"."""
    running_var: Tensor | None = None
    """[C], read for "running"."""


class Candidate(NamedTuple):
    """One operation of an edge.

    ==================== =============================================== ==========================
    kind                 computes                                        convolutions
    ==================== =============================================== ==========================
    "none"               nothing
    "identity"           x, at stride 1
    "max_pool"           3x3, padding 1; Norm
    "avg_pool"           3x3, padding 1 that is not counted; Norm
    "separable"          ReLU, depthwise, pointwise; Norm                [C, 1, k, k], [C, C, 1, 1]
    "separable_twice"    the same twice, the stride in the first         both twice
    "dense"              ReLU, convolution; Norm                         [C, C, k, k]
    "factorized_reduce"  ReLU, 1x1 convolutions of the pixels with even  [C / 2, C, 1, 1] twice
                         and with odd row and column, concatenated;
                         Norm; at stride 2, even sizes
    ==================== =============================================== ==========================

    Convolutions have "same" padding and no bias; k is 3, 5 or 7 of separable and 1 or 3 of dense
    ones.
    """

    kind: str
    convolutions: tuple[Tensor, ...] = ()
    norms: tuple[Norm, ...] = ()
    """One `Norm`, of "separable_twice" two; of pools one or none."""
    dilation: int = 1
    """Of the depthwise convolution of "separable"."""


@dataclass
class CellArguments:
    """The lists of the native op, filled candidate by candidate, each checked."""

    op: str
    like: Tensor
    inputs: int
    stride: int
    groups: int
    images: int
    ops: list[int] = field(default_factory=list)
    convolutions: list[Tensor] = field(default_factory=list)
    norms: list[int] = field(default_factory=list)
    eps: list[float] = field(default_factory=list)
    gammas: list[Tensor | None] = field(default_factory=list)
    betas: list[Tensor | None] = field(default_factory=list)
    running_means: list[Tensor | None] = field(default_factory=list)
    running_vars: list[Tensor | None] = field(default_factory=list)

    def add(self, source: int, node: int, candidate: Candidate) -> None:
        kind, convolutions, norms, dilation = candidate
        if kind not in _KINDS:
            raise ValueError(f"{self.op}: kind must be one of {', '.join(_KINDS)}, got {kind!r}")
        stride = self.stride if source < self.inputs else 1
        if kind == "identity" and stride != 1:
            raise ValueError(f"{self.op}: identity needs stride 1, got {stride}")
        if kind == "factorized_reduce" and (
            stride != 2 or any(length % 2 for length in self.like.shape[1:])
        ):
            raise ValueError(
                f"{self.op}: factorized_reduce needs stride 2 and even sizes, "
                f"got stride {stride} for {list(self.like.shape)}"
            )
        if dilation < 1 or (dilation > 1 and kind != "separable"):
            raise ValueError(
                f"{self.op}: dilation must be at least 1, and 1 unless separable, "
                f"got {dilation} for {kind}"
            )
        kernel = self._add_convolutions(kind, convolutions)
        self.ops += [source, node, _KINDS[kind], kernel, dilation if kernel else 0]
        if kind in _POOLS and not norms:
            norms = (Norm("none"),)
        wanted = {"none": 0, "identity": 0, "separable_twice": 2}.get(kind, 1)
        if len(norms) != wanted:
            raise ValueError(f"{self.op}: {kind} must have {wanted} norms, got {len(norms)}")
        for norm in norms:
            self._add_norm(kind, norm)

    def _add_convolutions(self, kind: str, convolutions: Sequence[Tensor]) -> int:
        """Returns the kernel size, 0 of kinds without one."""
        channels = self.like.shape[1]
        kernel = 0
        if kind in _KERNELS and convolutions:
            kernel = convolutions[0].shape[-1] if convolutions[0].dim() else 0
            if kernel not in _KERNELS[kind]:
                *most, last = _KERNELS[kind]
                raise ValueError(
                    f"{self.op}: kernels of {kind} must be {', '.join(map(str, most))} or {last}, "
                    f"got {list(convolutions[0].shape)}"
                )
        block: list[tuple[str, tuple[int, ...]]] = [
            ("depthwise weight", (channels, 1, kernel, kernel)),
            ("pointwise weight", (channels, channels, 1, 1)),
        ]
        half = (channels // 2, channels, 1, 1)
        shapes: dict[str, list[tuple[str, tuple[int, ...]]]] = {
            "separable": block,
            "separable_twice": block * 2,
            "dense": [("weight", (channels, channels, kernel, kernel))],
            "factorized_reduce": [("first weight", half), ("second weight", half)],
        }
        expected = shapes.get(kind, [])
        if len(convolutions) != len(expected):
            raise ValueError(
                f"{self.op}: {kind} must have {len(expected)} convolutions, got {len(convolutions)}"
            )
        for (name, shape), weight in zip(expected, convolutions, strict=True):
            self.expect(f"{name} of {kind}", weight, shape)
        self.convolutions += convolutions
        return kernel

    def _add_norm(self, kind: str, norm: Norm) -> None:
        if norm.kind not in _NORMS:
            raise ValueError(
                f"{self.op}: norms must be batch, running or none, got {norm.kind!r} for {kind}"
            )
        if norm.kind == "none" and kind not in _POOLS:
            raise ValueError(f"{self.op}: norm none is for pools only, got {kind}")
        if norm.kind == "running" and (norm.running_mean is None or norm.running_var is None):
            raise ValueError(
                f"{self.op}: norm running needs running_mean and running_var, got None for {kind}"
            )
        _, channels, height, width = self.like.shape
        if norm.kind == "batch" and self.images == 1 and max(height, width) <= self.stride:
            raise ValueError(
                f"{self.op}: expected more than 1 value per channel when training, "
                f"got states of {list(self.like.shape)} in {self.groups} groups"
            )
        self.norms.append(_NORMS[norm.kind])
        self.eps.append(float(norm.eps))
        running = norm.kind == "running"
        for name, wanted, values in (
            ("gamma", norm.kind != "none", self.gammas),
            ("beta", norm.kind != "none", self.betas),
            ("running_mean", running, self.running_means),
            ("running_var", running, self.running_vars),
        ):
            value: Tensor | None = getattr(norm, name)
            if value is not None:
                self.expect(f"{name} of {kind}", value, (channels,))
            values.append(value if wanted else None)

    def listed(self, values: Sequence[Tensor | None]) -> list[Tensor]:
        """What the native op takes: nothing if nobody has one, else an empty tensor for None."""
        if all(value is None for value in values):
            return []
        empty = self.like.new_empty(0)
        return [empty if value is None else value for value in values]

    def expect(self, name: str, value: Tensor, shape: tuple[int, ...]) -> None:
        check_tensor(self.op, name, value, shape, self.like, "the states")
