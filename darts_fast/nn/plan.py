# SPDX-License-Identifier: Apache-2.0
"""Which parts of an operation module the native ops take over (design 4.1).

A plan names the submodules that own the weights and the batch norms, found once. Their tensors,
training flags, eps and requires_grad are read at every call. An operation that is not whole and
untouched has no plan and runs as the module it is.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from darts_fast import _C
from darts_fast.functional._library import is_for_library
from darts_fast.nn import nasbench201_operations, operations
from darts_fast.nn.entries import Classes
from darts_fast.nn.watch import Store, children_of, current
from darts_fast.reference import CELL_KINDS

_DEPTHWISE_KERNELS = (3, 5, 7)
_DENSE_KERNELS = (1, 3)
_STRIDES = ((1, 1), (2, 2))

# Classes whose forward is known; a subclass may compute something else.
_KNOWN = (
    operations.DilConv,
    operations.FactorizedReduce,
    operations.Identity,
    operations.ReLUConvBN,
    operations.SepConv,
    operations.Zero,
    nasbench201_operations.Pooling,
    nasbench201_operations.ReLUConvBN,
    nasbench201_operations.Zero,
)
_LAYERS = (
    nn.AvgPool2d,
    nn.BatchNorm2d,
    nn.Conv2d,
    nn.Identity,
    nn.MaxPool2d,
    nn.ReLU,
    nn.Sequential,
)

# As they were when this package was imported; with a forward changed since, they run as modules.
_as_known = Classes((*_KNOWN, *_LAYERS))


@dataclass(frozen=True)
class Parts:
    """One operation in the terms of `functional.Candidate`."""

    kind: str
    stride: int
    convolutions: tuple[nn.Conv2d, ...] = ()
    norms: tuple[nn.BatchNorm2d | None, ...] = ()
    """One per norm slot of the kind; None for a pool that has no batch norm."""
    channels: tuple[int, int] | None = None
    """In and out, or None where any number will do."""

    @functools.cached_property
    def call(self) -> _C.ReluConvNormCall | None:
        """What runs it as `relu_conv_norm`, with what it has seen of the modules, or None."""
        if self.kind not in ("dense", "factorized_reduce", "stem"):
            return None
        return _C.ReluConvNormCall(len(self.convolutions), self.stride, self.kind != "stem")

    @property
    def kernel(self) -> int:
        if self.kind in ("separable", "separable_twice", "dense"):
            return self.convolutions[0].kernel_size[0]
        return 0

    @property
    def dilation(self) -> int:
        if self.kind in ("separable", "separable_twice", "dense"):
            return self.convolutions[0].dilation[0]
        return 0


def describe(op: nn.Module, *, by_structure: bool = False) -> Parts | None:
    """The parts of an operation, or None where the native op does not say the same.

    The caller makes sure that calling the op does no more than its forward (`has_hooks`).

    Args: by_structure, whether to read classes that are not known here by the names and types of
    their children. That their forward is the usual one is then a guess for the caller to prove.
    """
    if not _as_known.same():
        return None
    if type(op) is nn.Sequential:
        return _sequence(list(op))
    if type(op) is nn.Identity:
        return Parts("identity", 1)
    pool = _pool(op)
    if pool is not None:
        return Parts(*pool, norms=(None,))
    if not by_structure and type(op) not in _KNOWN:
        return None
    children = {name: child for name, child in op._modules.items() if child is not None}
    if op._parameters or op._buffers:
        return None
    if not children:
        return _without_children(op)
    if {*children} == {"relu", "conv_1", "conv_2", "bn"}:
        return _factorized_reduce(*(children[name] for name in ("relu", "conv_1", "conv_2", "bn")))
    if {*children} == {"op"} or (by_structure and len(children) == 1):
        return describe(*children.values())
    return _sequence([*children.values()]) if by_structure else None


def describe_stem(module: nn.Module) -> Parts | None:
    """The parts of a convolution with its batch norm behind it, as supernets begin, or None."""
    if not _as_known.same() or type(module) is not nn.Sequential:
        return None
    layers = list(module)
    if [type(layer) for layer in layers] != [nn.Conv2d, nn.BatchNorm2d]:
        return None
    parts = _dense([nn.ReLU(), *layers])
    return None if parts is None else replace(parts, kind="stem")


def has_hooks(module: nn.Module) -> bool:
    """Whether calling the module does more than the forward of its class."""
    return any(_HOOKS(vars(module))) or "forward" in vars(module)


_HOOKS = operator.itemgetter(
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
)


def _without_children(op: nn.Module) -> Parts | None:
    stride = getattr(op, "stride", None)
    if stride is None:
        return Parts("identity", 1)
    widths = (getattr(op, "C_in", None), getattr(op, "C_out", None))
    if widths == (None, None):
        return Parts("none", stride)
    return Parts("none", stride, channels=cast(tuple[int, int], widths))


def _pool(op: nn.Module) -> tuple[str, int] | None:
    """Kind and stride of a 3x3 pool whose padding is not counted."""
    if type(op) is nn.MaxPool2d:
        plain = _pair(op.dilation) == (1, 1) and not op.return_indices
        kind = "max_pool"
    elif type(op) is nn.AvgPool2d:
        plain = not op.count_include_pad and op.divisor_override is None
        kind = "avg_pool"
    else:
        return None
    stride = _pair(op.stride)
    sizes = (_pair(op.kernel_size), _pair(op.padding))
    if not plain or op.ceil_mode or sizes != ((3, 3), (1, 1)) or stride not in _STRIDES:
        return None
    return kind, stride[0]


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _sequence(layers: list[nn.Module]) -> Parts | None:
    # Exact types: a subclass or a parametrization may compute something else.
    types = [type(layer) for layer in layers]
    if len(layers) == 2 and types[1] is nn.BatchNorm2d:
        pool, norm = _pool(layers[0]), cast(nn.BatchNorm2d, layers[1])
        width = (norm.num_features, norm.num_features)
        return None if pool is None else Parts(*pool, norms=(norm,), channels=width)
    if types == [nn.ReLU, nn.Conv2d, nn.BatchNorm2d]:
        return _dense(layers)
    if types == [nn.ReLU, nn.Conv2d, nn.Conv2d, nn.BatchNorm2d]:
        return _separable(layers)
    if types == 2 * [nn.ReLU, nn.Conv2d, nn.Conv2d, nn.BatchNorm2d]:
        return _separable_twice(layers)
    return None


def _dense(layers: list[nn.Module]) -> Parts | None:
    relu, conv, norm = cast(tuple[nn.ReLU, nn.Conv2d, nn.BatchNorm2d], layers)
    fits = (
        conv.groups == 1
        and conv.kernel_size[0] in _DENSE_KERNELS
        and conv.dilation == (1, 1)
        and _is_same_padded(conv)
    )
    if not fits or relu.inplace or norm.num_features != conv.out_channels:
        return None
    widths = (conv.in_channels, conv.out_channels)
    return Parts("dense", conv.stride[0], (conv,), (norm,), widths)


def _separable(layers: list[nn.Module]) -> Parts | None:
    relu, depthwise, pointwise, norm = cast(
        tuple[nn.ReLU, nn.Conv2d, nn.Conv2d, nn.BatchNorm2d], layers
    )
    fits = (
        depthwise.groups == depthwise.in_channels == depthwise.out_channels
        and depthwise.kernel_size[0] in _DEPTHWISE_KERNELS
        and _is_same_padded(depthwise)
        and pointwise.groups == 1
        and pointwise.kernel_size == pointwise.stride == (1, 1)
        and _is_same_padded(pointwise)
        and pointwise.in_channels == depthwise.out_channels
        and norm.num_features == pointwise.out_channels
    )
    if not fits or relu.inplace:
        return None
    widths = (depthwise.in_channels, pointwise.out_channels)
    return Parts("separable", depthwise.stride[0], (depthwise, pointwise), (norm,), widths)


def _separable_twice(layers: list[nn.Module]) -> Parts | None:
    first, second = _separable(layers[:4]), _separable(layers[4:])
    if first is None or second is None:
        return None
    if (second.stride, first.dilation, second.dilation) != (1, 1, 1):
        return None
    assert first.channels is not None
    assert second.channels is not None
    if first.kernel != second.kernel or first.channels[1] != second.channels[0]:
        return None
    return Parts(
        "separable_twice",
        first.stride,
        first.convolutions + second.convolutions,
        first.norms + second.norms,
        (first.channels[0], second.channels[1]),
    )


def _factorized_reduce(
    relu: nn.Module, conv_1: nn.Module, conv_2: nn.Module, norm: nn.Module
) -> Parts | None:
    types = [type(part) for part in (relu, conv_1, conv_2, norm)]
    if types != [nn.ReLU, nn.Conv2d, nn.Conv2d, nn.BatchNorm2d]:
        return None
    first, second = cast(nn.Conv2d, conv_1), cast(nn.Conv2d, conv_2)
    fits = all(
        conv.groups == 1
        and conv.kernel_size == (1, 1)
        and conv.stride == (2, 2)
        and _is_same_padded(conv)
        and (conv.in_channels, conv.out_channels) == (first.in_channels, first.out_channels)
        for conv in (first, second)
    )
    batch_norm = cast(nn.BatchNorm2d, norm)
    widths = (first.in_channels, 2 * first.out_channels)
    if not fits or cast(nn.ReLU, relu).inplace or batch_norm.num_features != widths[1]:
        return None
    return Parts("factorized_reduce", 2, (first, second), (batch_norm,), widths)


def _is_same_padded(conv: nn.Conv2d) -> bool:
    """Square, without bias, zeros around, output as large as the input divided by the stride."""
    size, dilation = conv.kernel_size[0], conv.dilation[0]
    reach = dilation * (size - 1) // 2
    return (
        conv.kernel_size == (size, size)
        and conv.dilation == (dilation, dilation)
        and conv.padding == (reach, reach)
        and conv.stride in _STRIDES
        and conv.padding_mode == "zeros"
        and conv.bias is None
    )


@dataclass(frozen=True)
class CellPlan:
    """All operations of a cell, or of one edge, as `mixed_cell` takes them; lists by operation."""

    ops: list[int]
    """Source, node, kind, kernel, dilation of each."""
    convolutions: list[nn.Conv2d]
    convolution_ops: list[int]
    norms: list[nn.BatchNorm2d | None]
    norm_ops: list[int]
    """The operation that each convolution, each norm belongs to."""
    inputs: int
    nodes: int
    multiplier: int
    stride: int
    channels: int | None
    halves: bool
    """Whether some operation needs an even height and width; the modules say so if they are odd."""

    @property
    def width(self) -> int:
        """Number of operations."""
        return len(self.ops) // 5

    def takes(self, x: Tensor) -> bool:
        """Whether a state x [N, C, H, W] has a size that all operations have a native form for."""
        return not self.halves or (x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0)

    def is_for_library(self, x: Tensor) -> bool:
        """Whether it is better run as modules, whose convolutions are PyTorch's own."""
        return bool(self.convolutions) and is_for_library(x, x.shape[1])

    @functools.cached_property
    def call(self) -> _C.CellCall:
        """What runs it, with what it has seen of the modules."""
        return _C.CellCall(
            *(self.ops, self.convolution_ops, self.norm_ops),
            *(self.inputs, self.nodes, self.multiplier, self.stride),
        )


def plan_cell(
    edges: Sequence[tuple[int, int, Sequence[nn.Module]]],
    *,
    inputs: int,
    nodes: int,
    multiplier: int,
    by_structure: bool = False,
) -> CellPlan | None:
    """The plan of edges (source, node, candidates), or None if the native op cannot run them all.

    Args: inputs, the number of input states, which come before the nodes; by_structure, see
    `describe`.
    """
    plan = CellPlan([], [], [], [], [], inputs, nodes, multiplier, 1, None, False)
    strides: set[int] = set()
    widths: set[int] = set()
    halves, k = False, 0
    for source, node, candidates in edges:
        for op in candidates:
            parts = describe(op, by_structure=by_structure)
            if parts is None or (source >= inputs and parts.stride != 1):
                return None
            if source < inputs:
                strides.add(parts.stride)
            if parts.channels is not None:
                widths.update(parts.channels)
            halves = halves or parts.kind == "factorized_reduce"
            kind = CELL_KINDS.index(parts.kind)
            plan.ops.extend((source, node, kind, parts.kernel, parts.dilation))
            plan.convolutions.extend(parts.convolutions)
            plan.convolution_ops.extend([k] * len(parts.convolutions))
            plan.norms.extend(parts.norms)
            plan.norm_ops.extend([k] * len(parts.norms))
            k += 1
    if len(strides) != 1 or not strides <= {1, 2} or len(widths) > 1:
        return None
    return replace(
        plan, stride=strides.pop(), channels=widths.pop() if widths else None, halves=halves
    )


_plans: Store[CellPlan] = WeakKeyDictionary()
_parts: dict[tuple[type[nn.Module], bool], Store[Parts]] = {}
_stems: Store[Parts] = WeakKeyDictionary()


def current_plan(
    owner: nn.Module, root: nn.Module, build: Callable[[], CellPlan | None]
) -> CellPlan | None:
    """The plan of a module as it is now: built once, and again when a submodule was replaced.

    Args: owner, whose plan it is; root, the child that holds all operations; build, what finds the
    plan. Returns None if there is none, or if one of the operations has hooks.
    """
    return current(_plans, owner, [root], build)


def current_parts(op: nn.Module, *, by_structure: bool = False) -> Parts | None:
    """`describe`, found once, and again when a submodule was replaced; None if there are hooks."""
    if has_hooks(op):
        return None
    # Not the operation itself is watched: what a weak dictionary holds must not keep its key alive.
    store = _parts.setdefault((type(op), by_structure), WeakKeyDictionary())
    return current(store, op, children_of(op), lambda: describe(op, by_structure=by_structure))


def current_stem(module: nn.Module) -> Parts | None:
    """`describe_stem`, as `current_parts` is `describe`."""
    if has_hooks(module):
        return None
    return current(_stems, module, children_of(module), lambda: describe_stem(module))
