# SPDX-License-Identifier: Apache-2.0
"""Proofs on a copy in float64 that a native form computes what a module's own method computes.

Random parameters, running statistics, maps and weights; outputs, all gradients and running
statistics must agree, in training and in evaluation.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from darts_fast.accelerate.draws import draw_inputs, draw_values
from darts_fast.accelerate.forward import take_away
from darts_fast.accelerate.running import (
    Layouts,
    Runner,
    call_operation,
    is_channels_last,
    laid_out,
)
from darts_fast.accelerate.structure import (
    MIXED_OPERATION,
    Edge,
    NotTheSameError,
    Structure,
    as_in,
    describe_by_structure,
)
from darts_fast.backend import use_backend

# How far two results in float64 may be apart, in parts of the largest value and beyond; a gradient
# that is 0 on paper is not in numbers.
_TOLERANCE, _FLOOR = 1e-8, 1e-11

Results = dict[str, Tensor | None]


def prove_operation(op: nn.Module) -> None:
    """Raises NotTheSameError unless an operation's native form computes what the operation does."""
    parts = describe_by_structure(op)
    if parts is None:
        raise NotTheSameError("no native form")
    with _trial_of(op) as trial:
        structure = Structure(MIXED_OPERATION, "forward", (Edge(0, 1, (trial,)),))
        runner = Runner(trial, structure, [True])

        def own(x: Tensor, w: Tensor) -> Tensor:
            return w * call_operation(trial, x)

        def fused(x: Tensor, w: Tensor) -> Tensor:
            return runner.run([x], w, "multiply", [True])

        for training in (True, False):
            trial.train(training)
            inputs = draw_inputs(trial, structure, [True], zeros=False)
            _compare(trial, own, fused, inputs, any_input_gradient=True)


class Proof(NamedTuple):
    """What a module's method was found to compute; see `Structure` and `FusedForward`."""

    method: str
    parts: int
    pool: str
    zero: str
    neutral: Mapping[str, Any]
    lists: bool


def prove(module: nn.Module, structure: Structure, native: Sequence[bool]) -> Proof:
    """Proof that a method of a module computes the structure, or NotTheSameError with the reason.

    Args: native, one flag per operation: whether its own native form is proven.
    """
    meaning = (structure.method, structure.parts, structure.pool)
    error = NotTheSameError("it takes other arguments")
    for neutral in _neutral_arguments(module, structure):
        try:
            with _trial_of(module) as trial:
                own = as_in(trial, *meaning)
                zero = _compare_modes(trial, own, native, neutral)
                return Proof(*meaning, zero, neutral, _takes_lists(trial, own, neutral))
        except NotTheSameError as failed:
            error = failed
    raise error


def layouts_of(module: nn.Module, structure: Structure, neutral: Mapping[str, Any]) -> Layouts:
    """How a method that has a proof lays its results out in memory."""
    with _trial_of(module) as trial, torch.no_grad():
        own = as_in(trial, structure.method, structure.parts, structure.pool)
        method = getattr(type(trial.eval()), own.method)
        *maps, weights = draw_inputs(trial, own, [True] * len(own.ops), zeros=False)
        found = {}
        for filters in (False, True):
            for parameter in trial.parameters():
                if parameter.ndim == 4:
                    parameter.data = laid_out(parameter.data, filters)
            for given in (False, True):
                output = method(trial, *(laid_out(x, given) for x in maps), weights, **neutral)
                found[given, filters] = is_channels_last(output)
    return found


@contextmanager
def _trial_of(module: nn.Module) -> Iterator[nn.Module]:
    """A copy to change, in float64, without hooks and with random values; all errors are reasons.

    The state of random numbers is put back.
    """
    try:
        with (
            torch.random.fork_rng(devices=[]),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            use_backend("fused"),
        ):
            torch.manual_seed(0)
            trial = copy.deepcopy(module).cpu().double()
            for part in trial.modules():
                take_away(part)
                for hooks in (
                    *(part._forward_hooks, part._forward_pre_hooks),
                    *(part._backward_hooks, part._backward_pre_hooks),
                ):
                    hooks.clear()
            draw_values(trial)
            yield trial
    except NotTheSameError:
        raise
    except Exception as error:  # the module's own code may raise anything
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise NotTheSameError(reason) from error


def _compare_modes(
    trial: nn.Module, structure: Structure, native: Sequence[bool], neutral: Mapping[str, Any]
) -> str:
    """The rule for weights of 0; raises NotTheSameError if the two differ."""
    runner = Runner(trial, structure, native)
    method = getattr(type(trial), structure.method)

    def own(*leaves: Tensor) -> Tensor:
        return cast(Tensor, method(trial, *leaves, **neutral))

    def fused(*leaves: Tensor) -> Tensor:
        return runner.run(leaves[:-1], leaves[-1], zero, native)

    draw = functools.partial(draw_inputs, trial, structure, native)
    inputs = draw(zeros=True)
    zero = _zero_rule(trial.train(), structure.ops, own, inputs)
    # An operation that is skipped is compared where it has no zero weight.
    _compare(trial, own, fused, inputs)
    _compare(trial, own, fused, draw(zeros=False))
    _compare(trial.eval(), own, fused, draw(zeros=False))
    return zero


def _zero_rule(
    trial: nn.Module,
    ops: Sequence[nn.Module],
    own: Callable[..., Tensor],
    inputs: Sequence[Tensor],
) -> str:
    """Whether operations of weight 0 run ("multiply") or not ("skip")."""
    with _calls(ops) as called, _kept(trial):
        own(*inputs)
    weights = zip(ops, inputs[-1].flatten().tolist(), strict=True)
    rules = {"multiply" if op in called else "skip" for op, w in weights if w == 0.0}
    if len(rules) > 1:
        raise NotTheSameError("it runs some operations of weight 0 and others not")
    return rules.pop()


def _takes_lists(trial: nn.Module, structure: Structure, neutral: Mapping[str, Any]) -> bool:
    """Whether the method computes with lists of weights what it computes with a tensor."""
    method = getattr(type(trial), structure.method)
    *maps, weights = draw_inputs(trial, structure, [True] * len(structure.ops), zeros=False)
    rows: list[Any] = list(weights)
    if weights.ndim == 2:
        rows = [list(row) for row in rows]
    state = torch.get_rng_state()
    try:
        with torch.no_grad():
            expected = method(trial, *maps, weights, **neutral)
            torch.set_rng_state(state)
            found = method(trial, *maps, rows, **neutral)
    except Exception:  # it may expect a tensor
        return False
    return agree(found, expected, _TOLERANCE, _FLOOR)


def _compare(
    trial: nn.Module,
    own: Callable[..., Tensor],
    fused: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    *,
    any_input_gradient: bool = False,
) -> None:
    """Raises NotTheSameError unless both give the same results from the same state.

    Args: any_input_gradient, whether an input without a gradient is the same as one with 0.
    """
    state = torch.get_rng_state()
    with _kept(trial):
        expected = results(trial, own, inputs)
    torch.set_rng_state(state)
    found = results(trial, fused, inputs)
    for name, value in expected.items():
        other = found[name]
        if any_input_gradient and value is None and name.startswith("the gradient of input"):
            value = other if other is None else torch.zeros_like(other)
        if not agree(other, value, _TOLERANCE, _FLOOR):
            mode = "training" if trial.training else "evaluation"
            raise NotTheSameError(f"{name} differs in {mode}")


@contextmanager
def _kept(trial: nn.Module) -> Iterator[None]:
    """Puts buffers and the state of random numbers back."""
    state = torch.get_rng_state()
    before = [buffer.clone() for buffer in trial.buffers()]
    yield
    torch.set_rng_state(state)
    with torch.no_grad():
        for buffer, value in zip(trial.buffers(), before, strict=True):
            buffer.copy_(value)


@contextmanager
def _calls(ops: Sequence[nn.Module]) -> Iterator[set[nn.Module]]:
    """Gathers which of the modules run in a block."""
    called: set[nn.Module] = set()
    handles = [op.register_forward_pre_hook(lambda op, _: called.add(op)) for op in ops]
    yield called
    for handle in handles:
        handle.remove()


def _neutral_arguments(module: nn.Module, structure: Structure) -> list[dict[str, Any]]:
    """Values for what a method takes behind the weights: its defaults, and for those without one
    the number 0 (of drop-path) or None."""
    method = getattr(type(module), structure.method)
    parameters = list(inspect.signature(method).parameters.values())[1:]
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    rest = [
        parameter
        for parameter in parameters[structure.first_weights + 1 :]
        if parameter.kind in named
    ]
    empty = inspect.Parameter.empty
    fillings = (0.0, None) if any(parameter.default is empty for parameter in rest) else (None,)
    return [
        {
            parameter.name: filling if parameter.default is empty else parameter.default
            for parameter in rest
        }
        for filling in fillings
    ]


def results(module: nn.Module, method: Callable[..., Any], inputs: Sequence[Tensor]) -> Results:
    """Output, buffers, and gradients of a random function of the output.

    Parameters have no gradient afterwards.
    """
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    output = method(*leaves)
    direction = torch.randn(
        output.shape, dtype=output.dtype, generator=torch.Generator().manual_seed(1)
    )
    (output * direction).sum().backward()
    found: Results = {"the output": output.detach()}
    for i, leaf in enumerate(leaves):
        found[f"the gradient of input {i}"] = leaf.grad
    for name, parameter in module.named_parameters():
        found[f"the gradient of {name}"] = parameter.grad
        parameter.grad = None
    for name, buffer in module.named_buffers():
        found[name] = buffer.clone()
    return found


def agree(found: Tensor | None, expected: Tensor | None, tolerance: float, floor: float) -> bool:
    """Whether two results are as far apart as rounding can bring them; None agrees with None."""
    if found is None or expected is None:
        return found is expected
    if found.shape != expected.shape:
        return False
    scale = expected.abs().max().item() if expected.numel() else 0.0
    return torch.allclose(found, expected, rtol=0.0, atol=tolerance * scale + floor)
