# SPDX-License-Identifier: Apache-2.0
"""Fused forwards for supernets of other code bases, in place.

`accelerate` finds the cells and mixed operations of a model by the structure that quark0/darts,
darts-pt and the NAS-Bench-201 code share, and replaces the `forward` of those instances for which
it has proven on a copy that the fused one computes the same. Parameters, buffers, state_dict keys
and alphas are the model's own and stay where they are.
"""

from __future__ import annotations

import copy
import inspect
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from darts_fast.backend import use_backend
from darts_fast.nn.cell import Cell
from darts_fast.nn.fused_cell import run_cell, run_preprocess, runs_native
from darts_fast.nn.mixed_op import MixedOp
from darts_fast.nn.nasbench201 import NAS201SearchCell
from darts_fast.nn.plan import CellPlan, describe, plan_cell
from darts_fast.nn.watch import Watch, children_of

__all__ = ["accelerate", "accelerated", "restore"]

_log = logging.getLogger(__name__)
_Model = TypeVar("_Model", bound=nn.Module)

# The modules of this package, which run fused by themselves.
_NATIVE_FORWARDS = (Cell.forward, MixedOp.forward, NAS201SearchCell.forward)

# A proof: sizes of the maps, and how far two results in float64 may be apart, in parts of the
# largest value and beyond; a gradient that is 0 on paper is not in numbers.
_IMAGES, _HEIGHT, _WIDTH = 2, 8, 6
_TOLERANCE, _FLOOR = 1e-8, 1e-11

_POSITIONAL = inspect.Parameter.POSITIONAL_OR_KEYWORD


def accelerate(model: _Model) -> _Model:
    """Make every supernet cell of `model` one native call, in place.

    Outputs, gradients, running statistics, parameters and state_dict stay what they are. It acts on
    cells ``forward(s0, s1, weights[, drop_prob])`` with children `preprocess0`, `preprocess1` and
    `_ops`, on NAS-Bench-201 cells ``forward(x, weights)`` with children `edges`, and, where a cell
    is of another kind, on mixed operations ``forward(x, weights)`` with children `_ops`. Each is
    first run on a copy in float64 next to its own forward, with weights of either sign, small ones
    and zeros, in training and in evaluation: outputs, gradients and running statistics must agree.
    This also tells what a weight of 0 means to it (see `darts_fast.nn.mixed_op`). What does not
    pass is left alone and named in the log.

    An accelerated module calls its own forward where the fused one does not apply: with drop-path,
    on another device than the CPU, in another dtype than float32 and float64 (and bfloat16 under
    autocast in bfloat16), under other autocasts, with weights that are not one tensor, and while
    something in it has hooks or is not what it was.

    Copies by `copy.deepcopy` or pickle are accelerated models of their own. A shallow copy, as
    `nn.DataParallel` makes, is not: `restore` first.

    Args: model, changed in place; networks of `darts_fast.nn` need no change. A second call does
    nothing.

    Returns the model. Raises ValueError if it has nothing to accelerate.
    """
    done: set[nn.Module] = set()
    left: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        if module in done:
            continue
        fused = _fused(module)
        if type(module).forward in _NATIVE_FORWARDS or (fused is not None and fused.is_current()):
            done.update(module.modules())
            continue
        if fused is not None:
            del vars(module)["forward"]
        if "forward" in vars(module) or _edges(module) is None:
            continue
        try:
            vars(module)["forward"] = _proven(module)
            done.update(module.modules())
        except _NotTheSameError as error:
            left.setdefault(str(error), []).append(name or type(module).__name__)
    for reason, names in left.items():
        _log.warning(
            "accelerate: %d modules left alone (%s, ...): %s", len(names), names[0], reason
        )
    if not done:
        raise ValueError(
            "accelerate: model must have cells or mixed operations that compute as those of DARTS "
            f"or NAS-Bench-201, got none in {type(model).__name__}"
        )
    return model


def restore(model: _Model) -> _Model:
    """Undo `accelerate`: every module of `model` runs its own forward again. Returns the model."""
    for module in model.modules():
        if _fused(module) is not None:
            del vars(module)["forward"]
    return model


def accelerated(model: nn.Module) -> dict[str, str]:
    """What `accelerate` changed: name of the module -> its rule for weights of 0."""
    fused = {name: _fused(module) for name, module in model.named_modules()}
    return {name: forward.zero for name, forward in fused.items() if forward is not None}


def _fused(module: nn.Module) -> _FusedForward | None:
    forward = vars(module).get("forward")
    return forward if isinstance(forward, _FusedForward) else None


class _NotTheSameError(Exception):
    """Why the fused forward may not replace a module's own."""


@dataclass(frozen=True)
class _Structure:
    """A cell or a mixed operation, forward(*maps, weights)."""

    plan: CellPlan
    shape: tuple[int, ...]
    """Of the weights: [edges, ops], or [ops] for one edge."""
    preprocess: tuple[str, ...]
    """Names of the children that the maps pass first, or none."""
    ops: list[nn.Module]
    """All candidate operations, in the order of the weights."""


def _edges(module: nn.Module) -> list[tuple[int, int, list[nn.Module]]] | None:
    """(source, node, candidates) of what looks like a cell or mixed operation, else None."""
    children = module._modules
    table, ops = children.get("edges"), children.get("_ops")
    if isinstance(table, nn.ModuleDict):
        names = sorted(table)
        if not all(re.fullmatch(r"\d+<-\d+", name) for name in names):
            return None
        lists: list[Any] = [table[name] for name in names]
        nodes, sources = ([int(name.split("<-")[end]) for name in names] for end in (0, 1))
    elif isinstance(ops, nn.ModuleList) and {"preprocess0", "preprocess1"} <= {*children}:
        steps = vars(module).get("_steps")
        if not isinstance(steps, int):
            return None
        lists = [op._modules.get("_ops") for op in ops]
        pairs = [(state, node) for node in range(2, steps + 2) for state in range(node)]
        if len(pairs) != len(lists):
            return None
        sources, nodes = ([pair[end] for pair in pairs] for end in (0, 1))
    elif isinstance(ops, nn.ModuleList):
        lists, sources, nodes = [ops], [0], [1]
    else:
        return None
    # With one candidate there would be no weight of 0 to learn the rule from.
    if not lists or not all(isinstance(item, nn.ModuleList) and len(item) > 1 for item in lists):
        return None
    if any(len(item) != len(lists[0]) for item in lists):
        return None
    return [
        (source, node, list(item)) for source, node, item in zip(sources, nodes, lists, strict=True)
    ]


def _structure(module: nn.Module) -> _Structure:
    edges = _edges(module)
    assert edges is not None
    is_cell = "preprocess0" in module._modules
    plan = plan_cell(
        edges,
        inputs=2 if is_cell else 1,
        nodes=max(node for _, node, _ in edges) - (1 if is_cell else 0),
        multiplier=vars(module).get("_multiplier", 1) if is_cell else 1,
        by_structure=True,
    )
    if plan is None:
        raise _NotTheSameError("some of its operations have no native form")
    rows, width = len(edges), len(edges[0][2])
    return _Structure(
        plan,
        (width,) if "_ops" in module._modules and not is_cell else (rows, width),
        ("preprocess0", "preprocess1") if is_cell else (),
        [op for _, _, ops in edges for op in ops],
    )


class _FusedForward:
    """The forward of an accelerated module. It holds the module, so that copies hold the copy."""

    def __init__(self, module: nn.Module, zero: str) -> None:
        self.module = module
        self.zero = zero
        self.structure = _structure(module)
        self.watch = Watch(children_of(module))
        self.settings = _settings(module)
        self.inputs = 3 if self.structure.preprocess else 2
        parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
        self.names = [parameter.name for parameter in parameters]
        self.defaults = {
            parameter.name: parameter.default for parameter in parameters[self.inputs :]
        }
        if (
            len(parameters) < self.inputs
            or {parameter.kind for parameter in parameters} != {_POSITIONAL}
            or inspect.Parameter.empty in self.defaults.values()
        ):
            raise _NotTheSameError(f"its forward takes {', '.join(self.names)}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tensors = self._tensors(args, kwargs)
        # The last map of a cell has the size of its states.
        if (
            tensors
            and runs_native(*tensors[-2:])
            and self.structure.plan.takes(tensors[-2])
            and self.is_current(whole=True)
        ):
            return self.run(*tensors)
        return type(self.module).forward(self.module, *args, **kwargs)

    def run(self, *tensors: Tensor) -> Tensor:
        """Maps and weights -> what the module's own forward gives, by the native op."""
        *maps, weights = tensors
        for i, name in enumerate(self.structure.preprocess):
            module = cast(nn.Module, self.module._modules[name])
            maps[i] = run_preprocess(module, maps[i], by_structure=True)
        return run_cell(self.structure.plan, maps, weights, self.zero)

    def is_current(self, *, whole: bool = False) -> bool:
        """Whether the module is what was proven; `whole`, also that nothing in it has hooks."""
        return (
            self.watch.same(children_of(self.module))
            and all(vars(module).get(name) == value for module, name, value in self.settings)
            and (not whole or self.watch.untouched())
        )

    def _tensors(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """Maps and weights of a call that asks for what was proven, of any other none."""
        values = {**dict(zip(self.names, args, strict=False)), **kwargs}
        tensors = [values.pop(name, None) for name in self.names[: self.inputs]]
        if (
            len(args) > len(self.names)
            or not all(isinstance(tensor, Tensor) for tensor in tensors)
            or not all(x.ndim == 4 for x in tensors[:-1])
            or tensors[-1].shape != self.structure.shape
            or not all(
                name in self.defaults and _is_default(value, self.defaults[name])
                for name, value in values.items()
            )
        ):
            return []
        return tensors


def _is_default(value: Any, default: Any) -> bool:
    if isinstance(value, (int, float)) and isinstance(default, (int, float)):
        return value == default
    return value is None and default is None


def _settings(module: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """Plain attributes that a forward may depend on, of all modules whose class is not torch's."""
    return [
        (part, name, value)
        for part in module.modules()
        if not type(part).__module__.startswith("torch.")
        for name, value in vars(part).items()
        if isinstance(value, (bool, int, float, str)) and name != "training"
    ]


def _proven(module: nn.Module) -> _FusedForward:
    """The fused forward of a module, after a copy has passed the comparison.

    Raises _NotTheSameError if it does not, or if anything else is raised on the way.
    """
    try:
        with (
            torch.random.fork_rng(devices=[]),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            use_backend("fused"),
        ):
            zero = _prove(copy.deepcopy(module).cpu().double())
        return _FusedForward(module, zero)
    except _NotTheSameError:
        raise
    except Exception as error:  # the module's own code may raise anything
        raise _NotTheSameError(f"{type(error).__name__}: {error}") from error


def _prove(trial: nn.Module) -> str:
    """The rule for weights of 0. Changes `trial`; raises _NotTheSameError if the two differ."""
    generator = torch.Generator().manual_seed(0)
    structure = _structure(trial)
    for part in trial.modules():
        for hooks in (
            *(part._forward_hooks, part._forward_pre_hooks),
            *(part._backward_hooks, part._backward_pre_hooks),
        ):
            hooks.clear()
    _draw_values(trial, generator)
    zero = ""
    # Weights of 0 tell the rule; an operation that is skipped is compared where it has none.
    for training, zeros in ((True, True), (True, False), (False, False)):
        trial.train(training)
        maps = _draw_maps(trial, structure, generator)
        weights = _draw_weights(structure.shape, zeros, generator)
        before = [buffer.clone() for buffer in trial.buffers()]
        with _calls(structure.ops) as called:
            expected = _results(trial, trial.forward, maps, weights)
        for buffer, initial in zip(trial.buffers(), before, strict=True):
            buffer.copy_(initial)
        if zeros:
            ops = zip(structure.ops, weights.flatten().tolist(), strict=True)
            rules = {"multiply" if op in called else "skip" for op, w in ops if w == 0.0}
            if len(rules) > 1:
                raise _NotTheSameError("it runs some operations of weight 0 and others not")
            zero = rules.pop()
        found = _results(trial, _FusedForward(trial, zero).run, maps, weights)
        for name, value in expected.items():
            if not _agree(found[name], value):
                mode = "training" if training else "evaluation"
                raise _NotTheSameError(f"{name} differs in {mode}")
    return zero


@contextmanager
def _calls(ops: Sequence[nn.Module]) -> Iterator[set[nn.Module]]:
    """Gathers which of the modules run in a block."""
    called: set[nn.Module] = set()
    handles = [op.register_forward_pre_hook(lambda op, _: called.add(op)) for op in ops]
    yield called
    for handle in handles:
        handle.remove()


def _draw_values(trial: nn.Module, generator: torch.Generator) -> None:
    """Parameters and running statistics without special values, such as a zero initialisation."""
    with torch.no_grad():
        for parameter in trial.parameters():
            parameter.requires_grad_(True)
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            parameter.normal_(std=fan_in**-0.5, generator=generator)
        for name, buffer in trial.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(generator=generator)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5, generator=generator)


def _draw_maps(trial: nn.Module, structure: _Structure, generator: torch.Generator) -> list[Tensor]:
    """Inputs of a cell or a mixed operation; twice as large before a factorized reduce."""
    sizes = [(structure.plan.channels or 4, 1)]
    if structure.preprocess:
        parts = [
            describe(cast(nn.Module, trial._modules[name]), by_structure=True)
            for name in structure.preprocess
        ]
        sizes = [
            (part.channels[0], part.stride) for part in parts if part and part.channels is not None
        ]
        if len(sizes) != 2 or sizes[1][1] != 1:
            raise _NotTheSameError("its preprocessing is of another kind")
    return [
        torch.randn(
            _IMAGES,
            channels,
            stride * _HEIGHT,
            stride * _WIDTH,
            dtype=torch.float64,
            generator=generator,
        )
        for channels, stride in sizes
    ]


def _draw_weights(shape: tuple[int, ...], zeros: bool, generator: torch.Generator) -> Tensor:
    """Weights of either sign, in every row one that is small or, with `zeros`, is 0."""
    weights = torch.randn(shape, dtype=torch.float64, generator=generator)
    for row in weights.view(-1, shape[-1]):
        place = int(torch.randint(shape[-1], (), generator=generator))
        row[place] *= 0.0 if zeros else 1e-3
    return weights


def _results(
    module: nn.Module, forward: Callable[..., Any], maps: Sequence[Tensor], weights: Tensor
) -> dict[str, Tensor | None]:
    """Output, buffers, and gradients of a random function of the output."""
    leaves = [x.clone().requires_grad_() for x in (*maps, weights)]
    output = forward(*leaves)
    direction = torch.randn(
        output.shape, dtype=output.dtype, generator=torch.Generator().manual_seed(1)
    )
    (output * direction).sum().backward()
    results: dict[str, Tensor | None] = {"the output": output.detach()}
    for i, leaf in enumerate(leaves):
        results[f"the gradient of input {i}"] = leaf.grad
    for name, parameter in module.named_parameters():
        results[f"the gradient of {name}"] = parameter.grad
        parameter.grad = None
    for name, buffer in module.named_buffers():
        results[name] = buffer.clone()
    return results


def _agree(found: Tensor | None, expected: Tensor | None) -> bool:
    if found is None or expected is None:
        return found is expected
    if found.shape != expected.shape:
        return False
    scale = expected.abs().max().item() if expected.numel() else 0.0
    return torch.allclose(found, expected, rtol=0.0, atol=_TOLERANCE * scale + _FLOOR)
