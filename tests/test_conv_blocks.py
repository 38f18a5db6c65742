# SPDX-License-Identifier: Apache-2.0
"""conv_blocks against its specification, at every CPU capability."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from closeness import assert_close
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as torch_functional

from darts_fast import _ops, functional
from darts_fast.backend import use_backend

pytestmark = [
    pytest.mark.filterwarnings("error"),
    # torch 2.14's own opcheck reads the gradient of a tensor that is no leaf.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

# Kernel (0: no depthwise convolution) and dilation of each branch: all those of the DARTS spaces.
ALL = ((3, 1), (5, 1), (7, 1), (3, 2), (5, 2))
WITH_POINTWISE = (*ALL, (0, 1))


@dataclass
class Case:
    """Arguments of one call; `leaves` are those with a gradient."""

    inputs: list[Tensor]
    depthwise: list[Tensor | None]
    pointwise: list[Tensor]
    sources: list[int]
    dilations: list[int]
    stride: int
    norm: str
    gamma: Tensor | None
    beta: Tensor | None
    groups: int
    active: Tensor | None
    fixed: tuple[Tensor, Tensor] | None = None

    def to(self, dtype: torch.dtype) -> Case:
        def leaf(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.detach().to(dtype).requires_grad_()

        return replace(
            self,
            inputs=[leaf(x) for x in self.inputs],
            depthwise=[leaf(x) for x in self.depthwise],
            pointwise=[leaf(x) for x in self.pointwise],
            gamma=leaf(self.gamma),
            beta=leaf(self.beta),
        )

    @property
    def leaves(self) -> list[Tensor]:
        parts = (*self.inputs, self.gamma, self.beta, *self.depthwise, *self.pointwise)
        return [x for x in parts if x is not None]

    def statistics(self) -> tuple[Tensor | None, Tensor | None]:
        """mean and var [S, groups, C] of the inputs; others than the batch's for "running"."""
        if self.norm == "none":
            return None, None
        if self.fixed is not None:
            return self.fixed
        x = torch.stack([x.detach() for x in self.inputs])
        x = x.view(len(self.inputs), self.groups, -1, *x.shape[2:])
        shift = 0.3 if self.norm == "running" else 0.0
        mean, var = x.mean((2, 4, 5)), x.var((2, 4, 5), correction=0)
        return mean + shift, var * (1 + shift)

    def run(self) -> functional.ConvBlocks:
        mean, var = self.statistics()
        return functional.conv_blocks(
            self.inputs,
            self.depthwise,
            self.pointwise,
            sources=self.sources,
            dilations=self.dilations,
            stride=self.stride,
            norm=self.norm,
            mean=mean,
            var=var,
            gamma=self.gamma,
            beta=self.beta,
            groups=self.groups,
            active=self.active,
        )

    def results(self, backend: str) -> dict[str, Tensor]:
        with use_backend(backend):
            out = self.run()
            generator = torch.Generator().manual_seed(99)
            grads = torch.autograd.grad(
                out.outputs,
                self.leaves,
                [
                    torch.randn(y.shape, dtype=torch.float64, generator=generator).to(y.dtype)
                    for y in out.outputs
                ],
            )
        named = {f"gradient {i}": g for i, g in enumerate(grads)}
        outputs = {f"output {b}": y for b, y in enumerate(out.outputs)}
        return {**outputs, "mean": out.mean, "var": out.var, **named}


def make_case(
    *,
    branches: tuple[tuple[int, int], ...] = ALL,
    inputs: int = 2,
    batch: int = 2,
    channels: int = 16,
    out_channels: int = 16,
    size: tuple[int, int] = (8, 8),
    stride: int = 1,
    norm: str = "none",
    affine: bool = False,
    groups: int = 1,
    masked: bool = False,
    seed: int = 0,
) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    return Case(
        inputs=[draw(groups * batch, channels, *size) + 0.2 for _ in range(inputs)],
        depthwise=[draw(channels, 1, k, k) / k if k else None for k, _ in branches],
        pointwise=[draw(out_channels, channels, 1, 1) / channels**0.5 for _ in branches],
        sources=[b % inputs for b in range(len(branches))],
        dilations=[dilation for _, dilation in branches],
        stride=stride,
        norm=norm,
        gamma=draw(inputs, channels) if affine else None,
        beta=draw(inputs, channels) if affine else None,
        groups=groups,
        active=draw(groups, len(branches)) > -0.4 if masked else None,
    ).to(torch.float64)


def assert_matches_reference(case: Case, dtype: torch.dtype = torch.float32) -> None:
    rounded = case.to(dtype)
    actual, eager = rounded.results("fused"), rounded.results("reference")
    truth = rounded.to(torch.float64).results("reference")
    for name, value in actual.items():
        assert_close(name, value, eager[name], truth[name], gradient=name.startswith("gradient"))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("norm", ["none", "batch", "running"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradients(backend, dtype, norm, stride):
    branches = WITH_POINTWISE if stride == 1 else ALL
    case = make_case(branches=branches, stride=stride, norm=norm, affine=norm != "none")
    assert_matches_reference(case, dtype)


@pytest.mark.parametrize(
    "channels", [(4, 4), (6, 10), (10, 6), (36, 36), (32, 16), (64, 64), (3, 1)]
)
def test_any_number_of_channels(backend, channels):
    case = make_case(channels=channels[0], out_channels=channels[1], branches=((3, 1), (5, 2)))
    assert_matches_reference(case)


@pytest.mark.parametrize("channels", [16, 32, 48, 64])
@pytest.mark.parametrize("size", [(5, 8), (4, 24), (3, 41)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_whole_vectors_of_channels(backend, dtype, stride, size, channels):
    """Loops whose distances the compiler knows, for pairs of rows, rows and their ends."""
    case = make_case(channels=channels, out_channels=channels, size=size, stride=stride, inputs=1)
    assert_matches_reference(case, dtype)


@pytest.mark.parametrize("size", [(32, 32), (7, 5), (1, 1), (1, 9), (33, 20)])
@pytest.mark.parametrize("stride", [1, 2])
def test_any_size(backend, size, stride):
    assert_matches_reference(make_case(size=size, stride=stride, channels=10, out_channels=10))


def test_groups_have_their_own_statistics_and_decisions(backend):
    case = make_case(groups=3, norm="batch", affine=True, masked=True)
    assert not bool(case.active.all())
    assert_matches_reference(case)


@pytest.mark.parametrize("stride", [1, 2])
def test_equals_the_convolutions_of_torch(stride):
    case = make_case(stride=stride)
    out = case.run()
    for b, y in enumerate(out.outputs):
        kernel, dilation = case.depthwise[b].shape[-1], case.dilations[b]
        x = case.inputs[case.sources[b]].relu()
        pad = dilation * (kernel - 1) // 2
        x = torch_functional.conv2d(x, case.depthwise[b], None, stride, pad, dilation, 16)
        torch.testing.assert_close(y, torch_functional.conv2d(x, case.pointwise[b]))


def test_same_bits_at_any_number_of_threads(backend):
    case = make_case(batch=5, size=(16, 16), channels=10, norm="batch", groups=2).to(torch.float32)
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        results.append(case.results("fused"))
    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.equal(value, other[name]), name


def small_case(norm: str = "batch") -> Case:
    return make_case(
        branches=((3, 1), (3, 2), (0, 1)),
        channels=2,
        out_channels=3,
        size=(3, 2),
        norm=norm,
        affine=norm != "none",
    )


def as_function(case: Case) -> Callable[..., tuple[Tensor, ...]]:
    def function(*leaves: Tensor) -> tuple[Tensor, ...]:
        rest = iter(leaves)
        moved = replace(
            case,
            inputs=[next(rest) for _ in case.inputs],
            gamma=None if case.gamma is None else next(rest),
            beta=None if case.beta is None else next(rest),
            depthwise=[None if w is None else next(rest) for w in case.depthwise],
            pointwise=[next(rest) for _ in case.pointwise],
        )
        return tuple(moved.run().outputs)

    return function


@pytest.mark.parametrize("norm", ["none", "batch", "running"])
def test_gradcheck(backend, norm):
    # "batch" statistics are computed inside, as a function of the inputs; "running" ones are fixed.
    case = small_case(norm)
    if norm == "running":
        case.fixed = case.statistics()
    assert torch.autograd.gradcheck(as_function(case), case.leaves)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_second_derivative(norm):
    case = small_case(norm)
    seconds = []
    for backend in ("fused", "reference"):
        with use_backend(backend):
            outputs = case.run().outputs
            loss = sum(y.sin().sum() for y in outputs)
            first = torch.autograd.grad(loss, case.leaves, create_graph=True)
            value = sum(g.square().sum() for g in first)
            seconds.append(torch.autograd.grad(value, case.leaves))
    for actual, expected in zip(*seconds, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def op_arguments(case: Case) -> tuple:
    mean, var = case.statistics()
    empty = torch.empty(0, dtype=case.inputs[0].dtype)
    return (
        *(case.inputs, mean, var, case.gamma, case.beta, functional._NORMS[case.norm], 1e-5),
        *(case.sources, [empty if w is None else w for w in case.depthwise], case.pointwise),
        *(case.dilations, case.stride, case.groups, case.active),
    )


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_opcheck(norm):
    arguments = op_arguments(small_case(norm))
    torch.library.opcheck(_ops.conv_blocks, arguments)
    grads = [torch.randn_like(y) for y in _ops.conv_blocks(*arguments)[0]]
    affine = [norm == "batch"] * 2
    mask = [True, True, *affine, True, True, False, True, True, True]
    torch.library.opcheck(_ops.conv_blocks_backward, (grads, [True] * 3, *arguments, mask))


def test_compiles_as_one_graph():
    case = make_case(branches=((3, 1), (5, 2)), channels=4, out_channels=4).to(torch.float32)

    def step(inputs: list[Tensor]) -> Tensor:
        return sum(y.relu().sum() for y in replace(case, inputs=inputs).run().outputs)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(step(case.inputs), case.leaves)
    actual = torch.autograd.grad(compiled(case.inputs), case.leaves)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_a_gradient_that_does_not_arrive_is_not_computed():
    case = make_case()
    outputs = case.run().outputs
    grads = torch.autograd.grad(outputs[0].sum(), case.leaves)
    depthwise = grads[2:7]
    assert bool((depthwise[0] != 0).any())
    assert all(bool((g == 0).all()) for g in depthwise[1:])
    assert bool((grads[1] == 0).all())  # input 1 feeds no branch with a gradient


def test_only_wanted_gradients_are_computed(monkeypatch):
    seen = []
    inner = _ops.conv_blocks_backward
    monkeypatch.setattr(
        _ops._conv_blocks, "conv_blocks_backward", lambda *a: seen.append(a[-1]) or inner(*a)
    )
    case = make_case(branches=((3, 1), (5, 1)))
    case.depthwise = [w.detach() for w in case.depthwise]
    case.pointwise = [w.detach() for w in case.pointwise]
    sum(y.sum() for y in case.run().outputs).backward()
    assert seen == [[True, True, False, False, False, False, False, False]]


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "view"])
def test_any_strides(backend, layout):
    case = make_case()
    plain = case.run()
    x = case.inputs[0].detach()
    if layout == "transposed":
        x = x.transpose(2, 3).contiguous().transpose(2, 3)
    elif layout == "view":
        x = torch.cat([x, x], dim=1)[:, :16]
    else:
        x = x.contiguous()
    out = replace(case, inputs=[x, case.inputs[1]]).run()
    for actual, expected in zip(out.outputs, plain.outputs, strict=True):
        assert torch.equal(actual, expected)
        assert actual.is_contiguous(memory_format=torch.channels_last)


def test_autocast_runs_in_single_precision():
    case = make_case().to(torch.float32)
    low = replace(case, inputs=[x.detach().bfloat16() for x in case.inputs])
    with torch.autocast("cpu", torch.bfloat16):
        out = low.run()
    assert out.outputs[0].dtype == torch.float32


def test_empty_batch(backend):
    case = make_case(batch=0, norm="running").to(torch.float32)
    case.norm = "none"
    out = case.run()
    assert out.outputs[0].shape == (0, 16, 8, 8)
    grads = torch.autograd.grad(out.outputs, case.leaves, [y.detach() for y in out.outputs])
    assert all(bool((g == 0).all()) for g in grads)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    channels=st.integers(1, 40),
    out_channels=st.integers(1, 40),
    size=st.tuples(st.integers(1, 18), st.integers(1, 18)),
    batch=st.integers(1, 3),
    groups=st.integers(1, 2),
    inputs=st.integers(1, 3),
    stride=st.integers(1, 2),
    norm=st.sampled_from(["none", "batch", "running"]),
    affine=st.booleans(),
    masked=st.booleans(),
    branches=st.lists(st.sampled_from(ALL), min_size=3, max_size=6),
    seed=st.integers(0, 1000),
)
def test_any_shape(
    backend,
    channels,
    out_channels,
    size,
    batch,
    groups,
    inputs,
    stride,
    norm,
    affine,
    masked,
    branches,
    seed,
):
    case = make_case(
        branches=tuple(branches),
        inputs=inputs,
        batch=batch,
        channels=channels,
        out_channels=out_channels,
        size=size,
        stride=stride,
        norm=norm,
        affine=affine and norm != "none",
        groups=groups,
        masked=masked,
        seed=seed,
    )
    actual, truth = case.results("fused"), case.results("reference")
    for name, value in actual.items():
        scale = truth[name].abs().max().item() if truth[name].numel() else 0.0
        torch.testing.assert_close(value, truth[name], rtol=1e-8, atol=1e-9 * (1 + scale))


X, D, P = torch.zeros(4, 3, 6, 6), torch.zeros(3, 1, 3, 3), torch.zeros(2, 3, 1, 1)


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        (([], [D], [P]), {}, ValueError, "needs inputs and branches, got 0 and 1"),
        (([X], [D, D], [P]), {}, ValueError, "one entry per branch, got 2, 1, 1 for 1"),
        (([X], [D], [P]), {"norm": "layer"}, ValueError, "batch, running or none, got 'layer'"),
        (([X], [D], [P]), {"norm": "batch"}, ValueError, "mean and var must be given exactly"),
        (([X], [D], [P]), {"stride": 3}, ValueError, "stride must be 1 or 2, got 3"),
        (([X], [None], [P]), {"stride": 2}, ValueError, "without depthwise .* stride 1, got 2"),
        (([X], [D], [P]), {"groups": 3}, ValueError, "groups must divide the batch, got 3"),
        (([X], [D], [P]), {"sources": [1]}, ValueError, "sources must be below 1, got 1"),
        (([X], [D], [P]), {"dilations": [0]}, ValueError, "dilations must be at least 1, got 0"),
        (([X[0]], [D], [P]), {}, ValueError, r"4 dimensions .* got \[3, 6, 6\]"),
        (([X], [D[:2]], [P]), {}, ValueError, r"depthwise must have shape .*got \[2, 1, 3, 3\]"),
        (([X], [torch.zeros(3, 1, 2, 2)], [P]), {}, ValueError, "kernels must be 3, 5 or 7"),
        (([X], [D], [P.double()]), {}, TypeError, "pointwise must have the dtype"),
        (([X.half()], [D.half()], [P.half()]), {}, NotImplementedError, "float32 or float64"),
        (([X], [D], [P]), {"active": torch.ones(1, 1)}, TypeError, "active must be a bool"),
    ],
)
def test_errors_name_rule_and_values(arguments, keywords, error, message):
    with pytest.raises(error, match=f"conv_blocks: .*{message}"):
        functional.conv_blocks(*arguments, **keywords)
