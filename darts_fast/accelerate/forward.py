# SPDX-License-Identifier: Apache-2.0
"""The method that stands in for a module's own, and calls it where the fused one does not apply."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _functorch, _len_torch_dispatch_stack, _len_torch_function_stack
from torch.nn.modules.module import _has_any_global_hook
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from darts_fast.accelerate.reads import Reads, digest
from darts_fast.accelerate.running import Layouts, Runner
from darts_fast.accelerate.structure import CELL, Structure
from darts_fast.nn.code import METHODS
from darts_fast.nn.fused_cell import runs_native
from darts_fast.nn.plan import has_hooks
from darts_fast.nn.watch import Watch, children_of


class FusedForward:
    """The fused form of a module's method. It holds the module, so that copies hold the copy.

    Args: op_reasons, of each operation why it runs as its module, "" of those with a proven native
    form; zero, the rule for weights of 0; neutral, what the arguments behind the weights must be
    for the method to compute the structure; lists, whether the method takes lists of weights as it
    takes a tensor.

    Attributes:
        layouts: of its results, see `Runner.run`; empty where none must be as the method's are.
    """

    def __init__(
        self,
        module: nn.Module,
        structure: Structure,
        op_reasons: Sequence[str],
        *,
        zero: str,
        neutral: Mapping[str, Any],
        lists: bool,
    ) -> None:
        self.module = module
        self.structure = structure
        self.op_reasons = tuple(op_reasons)
        self.zero = zero
        self.neutral = dict(neutral)
        self.lists = lists
        self.layouts: Layouts = {}
        self._changed = False
        self._proven = ""
        self._look()

    def _look(self) -> None:
        """Takes the module as it is now for what was proven; a copy only if it is as its original
        was."""
        self._looked = True
        self.runner = Runner(
            self.module, self.structure, [not reason for reason in self.op_reasons]
        )
        kept = self.runner.run_as_modules()
        self._watch = Watch(children_of(self.module), without=kept)
        self._reads = Reads(part for part in self.module.modules() if part not in kept)
        if self._proven:
            self._changed = self._digest() != self._proven
        method = getattr(type(self.module), self.structure.method)
        self._names = [*inspect.signature(method).parameters][1:]

    def __getstate__(self) -> dict[str, Any]:
        kept = ("module", "structure", "op_reasons", "zero", "neutral", "lists", "layouts")
        current = self.is_current()
        return {
            **{name: vars(self)[name] for name in kept},
            "_changed": not current,
            "_proven": self._digest() if current else "",
            "_looked": False,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        # The module of a copy is not filled yet: it is looked at when it first runs.
        vars(self).update(state)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling() and not _has_any_global_hook() and not _is_observed():
            inputs = self._inputs(args, kwargs) if self.is_current() else None
            if inputs is not None:
                untouched = self.untouched()
                if self.runner.takes(inputs[-2], untouched):
                    return self.runner.run(
                        inputs[:-1], inputs[-1], self.zero, untouched, self.layouts
                    )
        return self.own(*args, **kwargs)

    def own(self, *args: Any, **kwargs: Any) -> Any:
        """What the module's class computes."""
        return getattr(type(self.module), self.structure.method)(self.module, *args, **kwargs)

    def is_current(self) -> bool:
        """Whether the module is what was proven."""
        if not self._looked:
            self._look()
        return (
            not self._changed and self._watch.same(children_of(self.module)) and self._reads.same()
        )

    def _digest(self) -> str:
        return digest((*self._watch.items(), *self._reads.items()))

    def untouched(self) -> list[bool]:
        """One flag per operation: whether to call it does no more than its forward.

        Of a cell it is all or nothing: hooks of its edges count too.
        """
        ops = self.structure.ops
        if not self._looked:
            self._look()
        if self._watch.untouched(FusedForward):
            return [True] * len(ops)
        if self.structure.kind == CELL:
            return [False] * len(ops)
        return [not any(has_hooks(part) for part in op.modules()) for op in ops]

    def _inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor] | None:
        """Maps and weights of a call that asks for what was proven, of any other None."""
        first = self.structure.first_weights
        values = {**dict(zip(self._names, args, strict=False)), **kwargs}
        if len(args) > len(self._names) or len(values) < len(args) + len(kwargs):
            return None
        maps = [values.pop(name, None) for name in self._names[:first]]
        weights = values.pop(self._names[first], None)
        if not all(isinstance(x, Tensor) and x.ndim == 4 for x in maps):
            return None
        x = maps[-1]  # of a cell, the one that has the size of its states
        if x.shape[1] % self.structure.parts or not all(
            name in self.neutral and _is_same(value, self.neutral[name])
            for name, value in values.items()
        ):
            return None
        table = self._table(weights, x)
        if (
            table is None
            or table.shape != self.structure.shape
            or not runs_native(x, table)
            or (self.zero == "skip" and not self._feeds_every_node(table))
        ):
            return None
        return [*maps, table]

    def _table(self, weights: Any, like: Tensor) -> Tensor | None:
        """The weights as a tensor of the maps' dtype, with the history that they have."""
        if isinstance(weights, (list, tuple)) and self.lists:
            weights = stacked(weights, like)
        if not isinstance(weights, Tensor) or weights.device != like.device:
            return None
        single = torch.is_autocast_enabled(like.device.type) and like.dtype != torch.float64
        return weights.to(torch.float32 if single else like.dtype)

    def _feeds_every_node(self, table: Tensor) -> bool:
        """Whether every node is a sum of something; if not, only the module's own code knows."""
        rows = table.detach().reshape(len(self.structure.edges), -1)
        fed = (rows != 0.0).any(1).tolist()
        nodes = {edge.node for edge in self.structure.edges}
        edges = zip(self.structure.edges, fed, strict=True)
        return {edge.node for edge, runs in edges if runs} == nodes


def fused_method(module: nn.Module) -> FusedForward | None:
    """What `accelerate` put into a module, or None."""
    found = (vars(module).get(name) for name in METHODS)
    return next((method for method in found if isinstance(method, FusedForward)), None)


def put(module: nn.Module, method: FusedForward) -> None:
    vars(module)[method.structure.method] = method


def take_away(module: nn.Module) -> None:
    """The module runs its own method again; nothing happens if it does so already."""
    method = fused_method(module)
    if method is not None:
        del vars(module)[method.structure.method]


def accelerated(model: nn.Module) -> dict[str, str]:
    """What `accelerate` changed: name of the module -> its rule for weights of 0.

    A cell stands for the mixed operations in it.
    """
    done: set[nn.Module] = set()
    rules = {}
    for name, module in model.named_modules():
        method = None if module in done else fused_method(module)
        if method is not None:
            rules[name] = method.zero
            done.update(module.modules())
    return rules


def stacked(weights: Sequence[Any], like: Tensor) -> Tensor | None:
    """Numbers, tensors, or lists of them as one tensor; None for anything else or uneven shapes."""
    items = [stacked(item, like) if isinstance(item, (list, tuple)) else item for item in weights]
    if not items or not all(isinstance(item, (Tensor, int, float)) for item in items):
        return None
    tensors = [x if isinstance(x, Tensor) else like.new_tensor(x) for x in items]
    if len({x.shape for x in tensors}) != 1 or any(x.device != like.device for x in tensors):
        return None
    return torch.stack([x.to(like.dtype) for x in tensors])


def _is_observed() -> bool:
    """Whether something looks at, or changes, every function that is called now: a mode (but one
    that only says where tensors are made) or a transform such as `torch.func.vmap`."""
    if _functorch.peek_interpreter_stack() is not None or _len_torch_dispatch_stack():
        return True
    return bool(_len_torch_function_stack()) and not all(
        isinstance(mode, DeviceContext) for mode in _get_current_function_mode_stack()
    )


def _is_same(value: Any, neutral: Any) -> bool:
    if isinstance(value, (int, float)) and isinstance(neutral, (int, float)):
        return value == neutral
    return value is None and neutral is None
