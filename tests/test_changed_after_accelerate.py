# SPDX-License-Identifier: Apache-2.0
"""What changes after accelerate is seen: modules give what their own code gives now."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from originals import darts, operations
from originals.operations import PRIMITIVES
from test_accelerate import assert_same, calls, cell_of, images, table  # noqa: F401
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

import darts_fast
from darts_fast.backend import use_backend
from darts_fast.nn import build_supernet
from darts_fast.nn.mixed_op import MixedOp
from darts_fast.nn.operations import NormalisedOp

Change = Callable[[nn.Module, pytest.MonkeyPatch], object]
SCALE = 1


def setting(get: Callable[[nn.Module], nn.Module], **values: object) -> Change:
    def change(module: nn.Module, patch: pytest.MonkeyPatch) -> None:
        for name, value in values.items():
            patch.setattr(get(module), name, value, raising=False)

    return change


def class_setting(kind: object, name: str, value: object) -> Change:
    return lambda _, patch: patch.setattr(kind, name, value)


def op(k: int, *path: int) -> Callable[[nn.Module], nn.Module]:
    """Of the third edge of a cell, the operation k of `PRIMITIVES` or a layer of it."""

    def get(cell: nn.Module) -> nn.Module:
        found = cell._ops[2]._ops[k]
        if path and hasattr(found, "op"):
            found = found.op
        for i in path:
            found = found[i]
        return found

    return get


convolution, norm = op(4, 1), op(4, 3)


def twice(self: nn.Module, x: Tensor) -> Tensor:
    return 2 * self.op(x)


def absolute(self: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rest = (self.stride, self.padding, self.dilation, self.groups)
    return functional.conv2d(x, weight.abs(), bias, *rest)


def leaky(x: Tensor, inplace: bool = False) -> Tensor:
    return functional.leaky_relu(x, 0.1)


def tripled(self: nn.Module, x: Tensor, weights: Tensor) -> Tensor:
    return 3 * sum(w * op(x) for w, op in zip(weights, self._ops, strict=True))


def parameter(module: nn.Module, patch: pytest.MonkeyPatch, name: str, *shape: int) -> None:
    patch.setitem(module._parameters, name, nn.Parameter(images(*shape)))


CHANGES: dict[str, Change] = {
    "dilation": setting(convolution, dilation=(2, 2), padding=(2, 2)),
    "less dilation": setting(op(6, 1), dilation=(1, 1), padding=(1, 1)),
    "groups": lambda cell, patch: (
        patch.setattr(convolution(cell), "groups", 2),
        parameter(convolution(cell), patch, "weight", 4, 2, 3, 3),
    ),
    "a larger kernel of a preprocessing": lambda cell, patch: (
        parameter(cell.preprocess1.op[1], patch, "weight", 4, 6, 3, 3),
        patch.setattr(cell.preprocess1.op[1], "padding", (1, 1)),
    ),
    "bias": lambda cell, patch: parameter(convolution(cell), patch, "bias", 4),
    "counted padding": setting(op(2, 0), count_include_pad=True),
    "divisor": setting(op(2, 0), divisor_override=3),
    "a method of an instance": lambda cell, patch: patch.setattr(
        convolution(cell),
        "_conv_forward",
        lambda *args: absolute(convolution(cell), *args),
        raising=False,
    ),
    "forward of a class": class_setting(operations.SepConv, "forward", twice),
    "forward of a base": class_setting(darts.MixedOp, "forward", tripled),
    "forward of torch": class_setting(nn.ReLU, "forward", lambda self, x: leaky(x)),
    "method of torch": class_setting(nn.Conv2d, "_conv_forward", absolute),
    "function of torch": class_setting(functional, "relu", leaky),
}

# Read at every call, so that the native call goes on.
LIVE: dict[str, Change] = {
    "eps": setting(norm, eps=0.5),
    "momentum": setting(norm, momentum=0.9),
    "cumulative average": setting(norm, momentum=None),
    "statistics not tracked": setting(norm, track_running_stats=False),
    "norm in evaluation": setting(norm, training=False),
    "values": lambda cell, _: convolution(cell).weight.data.mul_(2),
    "another parameter": lambda cell, patch: parameter(
        convolution(cell), patch, "weight", 4, 1, 3, 3
    ),
    "the same value anew": setting(convolution, padding=(*[1, 1],)),
    "what no code reads": setting(lambda cell: cell, remark=[1]),
}


def compared(module: nn.Module, calls: list[int], *inputs: Tensor) -> list[int]:  # noqa: F811
    """Results of a module are those of its own code; the widths of its native calls."""
    plain = darts_fast.restore(copy.deepcopy(module))
    assert not darts_fast.accelerated(plain)
    calls.clear()
    assert_same(module, plain, *inputs)
    module.zero_grad()
    return list(calls)


@pytest.mark.parametrize("change", [*CHANGES, *LIVE])
def test_a_change_in_a_cell(change: str, calls: list[int]) -> None:  # noqa: F811
    cell = darts_fast.accelerate(cell_of(darts.Cell).double())
    inputs = (images(2, 6, 6, 8), images(2, 6, 6, 8, seed=2), table("softmax"))
    with pytest.MonkeyPatch.context() as patch:
        {**CHANGES, **LIVE}[change](cell, patch)
        assert (compared(cell, calls, *inputs) == [40]) == (change in LIVE)
    assert compared(cell, calls, *inputs) == [40]


class Helper:
    scale = 1


def scaled(x: Tensor) -> Tensor:
    return SCALE * x


def outer() -> tuple[type[darts.MixedOp], Callable[[float], None]]:
    """A class that reads a variable of the function around it, and what sets that."""
    shift = 0.0

    class Shifted(darts.MixedOp):
        def forward(self, x, weights):  # type: ignore[no-untyped-def]
            return super().forward(x, weights) + shift

    def set_shift(value: float) -> None:
        nonlocal shift
        shift = value

    return Shifted, set_shift


class Reading(darts.MixedOp):
    """Reads from many places, which all say that the sum stays as it is."""

    slope = 1
    sizes = [1, 1]  # noqa: RUF012 - may be changed in place

    def __init__(self) -> None:
        super().__init__(4, 1, ("skip_connect", "sep_conv_3x3", "none"))
        self.args = SimpleNamespace(gain=1, more={"offset": 0})
        self.index = torch.ones(1, dtype=torch.int64)

    @property
    def times(self) -> int:
        return self.slope * getattr(self, "power", 1)

    def forward(self, x, weights):  # type: ignore[no-untyped-def]
        total = sum(w * op(x) for w, op in zip(weights, self._ops, strict=True))
        factor = self.times * self.sizes[1] * self.args.gain * Helper.scale * self.index.item()
        return factor * scaled(total) + self.args.more["offset"]


READ: dict[str, Change] = {
    "attribute of the class": class_setting(Reading, "slope", 3),
    "attribute of the instance": setting(lambda edge: edge, slope=3),
    "attribute by its name": setting(lambda edge: edge, power=2),
    "property": class_setting(Reading, "times", property(lambda _: 5)),
    "a list of the class": class_setting(Reading, "sizes", [1, 4]),
    "inside an object": lambda edge, patch: patch.setattr(edge.args, "gain", 2),
    "inside a dictionary": lambda edge, patch: patch.setitem(edge.args.more, "offset", 0.25),
    "a class named in the code": class_setting(Helper, "scale", 2),
    "a global behind a function": lambda _, patch: patch.setitem(globals(), "SCALE", 2),
    "a function": lambda _, patch: patch.setitem(globals(), "scaled", lambda x: 2 * x),
    "code of a function": class_setting(scaled, "__code__", (lambda x: 3 * x).__code__),
}
EDGE = (images(2, 4, 6, 8), images(3, seed=2))


@pytest.mark.parametrize("change", READ)
def test_what_code_reads(change: str, calls: list[int]) -> None:  # noqa: F811
    edge = darts_fast.accelerate(Reading().double())
    with pytest.MonkeyPatch.context() as patch:
        READ[change](edge, patch)
        assert compared(edge, calls, *EDGE) == []
        assert "left alone: the output differs" in str(darts_fast.explain(edge))
        with pytest.raises(ValueError, match="the output differs"):
            darts_fast.accelerate(copy.deepcopy(edge))  # an earlier proof says nothing of it
    assert compared(edge, calls, *EDGE) == [3]


def test_what_is_changed_in_place(calls: list[int]) -> None:  # noqa: F811
    edge = darts_fast.accelerate(Reading().double())
    Reading.sizes[1] = 4
    try:
        assert compared(edge, calls, *EDGE) == []
        with pytest.raises(ValueError, match="the output differs"):
            darts_fast.accelerate(copy.deepcopy(edge))
    finally:
        Reading.sizes[1] = 1
    assert compared(edge, calls, *EDGE) == [3]
    edge.index.mul_(2)
    assert compared(edge, calls, *EDGE) == []


def test_a_variable_of_the_function_around_a_class(calls: list[int]) -> None:  # noqa: F811
    kind, set_shift = outer()
    edge = darts_fast.accelerate(kind(4, 1, ("skip_connect", "sep_conv_3x3", "none")).double())
    assert compared(edge, calls, *EDGE) == [3]
    set_shift(0.5)
    assert compared(edge, calls, *EDGE) == []


class Masked(darts.MixedOp):
    """A mask of ones, in a buffer or in an attribute."""

    def __init__(self, buffer: bool) -> None:
        super().__init__(4, 1, ("skip_connect", "sep_conv_3x3", "none"))
        if buffer:
            self.register_buffer("mask", torch.ones(3))
        else:
            self.mask = torch.ones(3)

    def forward(self, x, weights):  # type: ignore[no-untyped-def]
        return super().forward(x, self.mask * weights)


@pytest.mark.parametrize("buffer", [True, False])
def test_a_mask_that_may_change_is_not_fused(buffer: bool) -> None:
    with pytest.raises(ValueError, match="the output differs in training"):
        darts_fast.accelerate(Masked(buffer))


COPIES = {"copy": copy.deepcopy, "pickle": lambda module: pickle.loads(pickle.dumps(module))}


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_that_is_changed_before_its_first_run(copied: str, calls: list[int]) -> None:  # noqa: F811
    cell = darts_fast.accelerate(cell_of(darts.Cell).double())
    inputs = (images(2, 6, 6, 8), images(2, 6, 6, 8, seed=2), table("softmax"))
    assert compared(COPIES[copied](cell), calls, *inputs) == [40]
    other = COPIES[copied](cell)
    convolution(other).padding = convolution(other).dilation = (2, 2)
    assert compared(other, calls, *inputs) == [8] * 4
    assert compared(cell, calls, *inputs) == [40]


def test_a_class_that_changes_between_pickling_and_loading(calls: list[int]) -> None:  # noqa: F811
    edge = darts_fast.accelerate(darts.MixedOp(4, 1, PRIMITIVES).double())
    saved, inputs = pickle.dumps(edge), (images(2, 4, 6, 8), images(8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operations.SepConv, "forward", twice)
        assert compared(pickle.loads(saved), calls, *inputs) == []
    assert compared(pickle.loads(saved), calls, *inputs) == [8]


class Scheduled(nn.Module):
    """An operation without a native form, with a setting that goes along with training."""

    strength = 0.1

    def forward(self, x: Tensor) -> Tensor:
        return self.strength * x.tanh()


def test_an_operation_that_runs_as_its_module_may_change(calls: list[int]) -> None:  # noqa: F811
    edge = darts.MixedOp(4, 1, ("skip_connect", "sep_conv_3x3", "none")).double()
    edge._ops.append(Scheduled())
    darts_fast.accelerate(edge)
    inputs = (images(2, 4, 6, 8), images(4, seed=2))
    assert compared(edge, calls, *inputs) == [3]
    edge._ops[3].strength = 0.7
    assert compared(edge, calls, *inputs) == [3]


class Rounding(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        return out.round(decimals=1) if func is functional.relu else out


def counted(edge: nn.Module, x: Tensor, weights: Tensor) -> Tensor:
    with FlopCounterMode(display=False) as counter:
        edge(x, weights)
    return torch.tensor(counter.get_total_flops())


def rounded(edge: nn.Module, x: Tensor, weights: Tensor) -> Tensor:
    with Rounding():
        out: Tensor = edge(x, weights)
    return out


def mapped(edge: nn.Module, x: Tensor, weights: Tensor) -> Tensor:
    rows = torch.stack([weights, 2 * weights])
    found: Tensor = torch.func.vmap(lambda row: edge.eval()(x, row))(rows)
    return found


@pytest.mark.parametrize("observed", [counted, rounded, mapped])
def test_modes_and_transforms_see_the_functions_of_the_original(
    observed: Callable[..., Tensor],
    calls: list[int],  # noqa: F811
) -> None:
    edge = darts_fast.accelerate(darts.MixedOp(4, 1, PRIMITIVES).double())
    plain = darts_fast.restore(copy.deepcopy(edge))
    calls.clear()
    inputs = (images(2, 4, 6, 8), images(8))
    torch.testing.assert_close(observed(edge, *inputs), observed(plain, *inputs))
    assert not calls
    with torch.device("cpu"):  # a mode that changes nothing
        edge(*inputs)
    assert calls == [8]


def first_convolution(net: nn.Module) -> nn.Module:
    return net.cells[0]._ops[1]._ops[3].op[1]


PACKAGE: dict[str, Change] = {
    "dilation": setting(first_convolution, dilation=(2, 2), padding=(2, 2)),
    "a larger kernel of a preprocessing": lambda net, _: (
        setattr(net.cells[1].preprocess1.op[1], "weight", nn.Parameter(images(8, 16, 3, 3))),
        setattr(net.cells[1].preprocess1.op[1], "padding", (1, 1)),
    ),
    "bias": lambda net, _: setattr(first_convolution(net), "bias", nn.Parameter(images(4))),
    "forward of an edge": class_setting(MixedOp, "forward", tripled),
    "forward": class_setting(NormalisedOp, "forward", lambda self, x: 2 * self.norm(self.raw(x))),
    "method of torch": class_setting(nn.Conv2d, "_conv_forward", absolute),
}


@pytest.mark.parametrize("change", PACKAGE)
def test_networks_of_the_package(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = build_supernet("s5", channels=2, num_classes=3, layers=2).double()
    x = images(2, 3, 8, 8)
    before = net(x)
    PACKAGE[change](net, monkeypatch)
    plain = copy.deepcopy(net)
    with use_backend("reference"):
        expected = plain(x)
    expected.square().sum().backward()
    found = net(x)
    found.square().sum().backward()
    assert change == "bias" or not torch.allclose(found, before)  # a norm takes a bias away
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for parameter, other in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-7, atol=1e-9)


FACTORS = np.ones(1)


class ByArray(nn.Module):
    """Its factor is inside of what is watched as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self._ops = nn.ModuleList(operations.searched(name, 2, 1) for name in PRIMITIVES)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return float(FACTORS[0]) * sum(w * op(x) for w, op in zip(weights, self._ops, strict=True))


def test_verify_finds_what_is_not_watched() -> None:
    batch = (images(2, 2, 6, 6), images(8, seed=2).softmax(-1))
    edge = darts_fast.accelerate(ByArray().double(), verify=batch)
    assert darts_fast.accelerated(edge)
    FACTORS[0] = 2.0
    try:
        with pytest.raises(darts_fast.AccelerateError, match="must be the same both ways"):
            darts_fast.accelerate(edge, verify=batch)
    finally:
        FACTORS[0] = 1.0
    assert not darts_fast.accelerated(edge)
