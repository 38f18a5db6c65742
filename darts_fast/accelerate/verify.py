# SPDX-License-Identifier: Apache-2.0
"""One batch both ways: what every accelerated module gives beside its own method."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from darts_fast.accelerate.forward import (
    FusedForward,
    accelerated,
    fused_method,
    put,
    take_away,
)
from darts_fast.accelerate.proof import results

_IMAGES, _SIZE = 4, 32

# Norm of the difference in parts of the norm: rounding in a module's own precision, that a batch
# norm or a ReLU between may enlarge.
_TOLERANCES = {torch.float64: 1e-7, torch.float32: 1e-3}
_HALF_TOLERANCE = 0.1
_FLOOR = 1e-6


class AccelerateError(RuntimeError):
    """A fused method and the module's own gave different results on the same inputs."""


def verify_model(model: nn.Module, batch: Any = True) -> None:
    """Run one batch through an accelerated model both ways and compare.

    Every call of an accelerated module is made twice on the same inputs, by its own method and by
    the fused one, in the model's own precision and mode: output, gradients of all tensors given and
    of parameters, and buffers. Then the outputs of the whole model are compared. Buffers, gradients
    and the state of random numbers are afterwards what they were before.

    Args:
        batch: the model's input, a tuple of its arguments, a pair (images, labels) of which the
            labels are left out, or True for 4 random images of 32x32.

    Raises:
        AccelerateError: names the first module, in the order of calls, that differs, with the
            numbers.
    """
    arguments = model_arguments(model, batch)
    names = accelerated(model)
    with unchanged(model), torch.no_grad(), _compared(model, names):
        expected = model(*arguments)
    with unchanged(model), torch.no_grad():
        found = model(*arguments)
    pairs = zip(_tensors(found), _tensors(expected), strict=True)
    for i, (mine, own) in enumerate(pairs):
        _check(f"output {i} of {type(model).__name__}", mine, own)


@contextmanager
def _compared(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Calls of these modules give what their own methods give, and are checked."""
    methods = {name: fused_method(model.get_submodule(name)) for name in names}
    for name, method in methods.items():
        assert method is not None
        vars(method.module)[method.structure.method] = functools.partial(_call_both, name, method)
    try:
        yield
    finally:
        for method in methods.values():
            assert method is not None
            put(method.module, method)


def _call_both(name: str, method: FusedForward, *args: Any, **kwargs: Any) -> Any:
    leaves = _tensors((args, kwargs))

    def call(function: Callable[..., Any], *copies: Tensor) -> Any:
        given = {id(leaf): copy for leaf, copy in zip(leaves, copies, strict=True)}
        return function(*_replaced(args, given), **_replaced(kwargs, given))

    module = method.module
    with torch.enable_grad(), unchanged(module):
        found = results(module, functools.partial(call, method), leaves)
    with torch.enable_grad(), unchanged(module), _restored(module):
        expected = results(module, functools.partial(call, method.own), leaves)
    for what, value in expected.items():
        _check(f"{what} of {name or type(module).__name__}", found[what], value)
    with _restored(module):
        return method.own(*args, **kwargs)


@contextmanager
def _restored(module: nn.Module) -> Iterator[None]:
    """Inside, the module and all below it run their own methods."""
    methods = [method for part in module.modules() if (method := fused_method(part))]
    for method in methods:
        take_away(method.module)
    yield
    for method in methods:
        put(method.module, method)


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Puts buffers, gradients and the state of random numbers back."""
    buffers = [buffer.clone() for buffer in module.buffers()]
    gradients = [parameter.grad for parameter in module.parameters()]
    for parameter in module.parameters():
        parameter.grad = None
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in zip(module.buffers(), buffers, strict=True):
                    buffer.copy_(value)
            for parameter, gradient in zip(module.parameters(), gradients, strict=True):
                parameter.grad = gradient


def distance_and_norm(found: Tensor, expected: Tensor) -> tuple[float, float]:
    """Norms of the difference and of what is expected, summed in double precision."""
    distance, norm = (
        torch.linalg.vector_norm(x.double()).item() for x in (found - expected, expected)
    )
    return distance, norm


def _check(what: str, found: Tensor | None, expected: Tensor | None) -> None:
    """Raises AccelerateError unless the two are as far apart as rounding can bring them."""
    if found is None or expected is None:
        if found is not expected:
            raise AccelerateError(
                f"accelerate: {what} must be the same both ways, got "
                f"{'none' if found is None else 'one'} fused and "
                f"{'none' if expected is None else 'one'} of its own"
            )
        return
    if found.shape != expected.shape:
        raise AccelerateError(
            f"accelerate: {what} must be the same both ways, got {list(found.shape)} fused and "
            f"{list(expected.shape)} of its own"
        )
    tolerance = _TOLERANCES.get(expected.dtype, _HALF_TOLERANCE)
    distance, norm = distance_and_norm(found, expected)
    if not distance <= tolerance * norm + _FLOOR * expected.numel() ** 0.5:
        largest = (found - expected).abs().max().item()
        raise AccelerateError(
            f"accelerate: {what} must be the same both ways, got a difference of norm "
            f"{distance:.3g} (largest entry {largest:.3g}) to a norm of {norm:.3g}"
        )


def model_arguments(model: nn.Module, batch: Any) -> tuple[Any, ...]:
    if batch is True:
        first = next((part for part in model.modules() if isinstance(part, nn.Conv2d)), None)
        if first is None:
            raise ValueError("accelerate: verify must be a batch for a model without convolutions")
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(_IMAGES, first.in_channels, _SIZE, _SIZE, generator=generator)
        return (images.to(first.weight),)
    if isinstance(batch, Tensor):
        return (batch,)
    arguments = tuple(batch)
    if len(arguments) == 2 and all(isinstance(part, Tensor) for part in arguments):
        images, other = arguments
        if other.ndim == 1 and len(other) == len(images) and not other.is_floating_point():
            return (images,)
    return arguments


def _tensors(value: Any) -> list[Tensor]:
    """All floating-point tensors in nested lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


def _replaced(value: Any, tensors: Mapping[int, Tensor]) -> Any:
    """The same nest with other tensors in the places of those."""
    if isinstance(value, Tensor):
        return tensors.get(id(value), value)
    if isinstance(value, dict):
        return {key: _replaced(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, tensors) for item in value]
    return tuple(_replaced(item, tensors) for item in value) if type(value) is tuple else value
