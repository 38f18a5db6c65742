# SPDX-License-Identifier: Apache-2.0
"""relu_conv_norm against its specification and the original modules, at every CPU capability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from cell_cases import assert_same
from closeness import assert_close
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native_calls import observed
from torch import Tensor, nn

from darts_fast import _ops, functional
from darts_fast.backend import use_backend
from darts_fast.functional import Norm
from darts_fast.nn import operations

pytestmark = [
    pytest.mark.filterwarnings("error"),
    # torch 2.14's own opcheck reads the gradient of a tensor that is no leaf.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

# Kernel (2: two halves) and stride.
FORMS = [(1, 1), (1, 2), (3, 1), (3, 2), (2, 2)]
every_form = pytest.mark.parametrize("form", FORMS, ids=str)


@dataclass
class Case:
    """Arguments of one call; all tensors but the running statistics are leaves with a gradient."""

    tensors: dict[str, Tensor]
    kind: str
    stride: int
    groups: int
    relu: bool = True

    def to(self, dtype: torch.dtype) -> Case:
        moved = {name: x.detach().to(dtype) for name, x in self.tensors.items()}
        for name, x in moved.items():
            x.requires_grad_(not name.startswith("running"))
        return replace(self, tensors=moved)

    @property
    def named_leaves(self) -> dict[str, Tensor]:
        return {n: x for n, x in self.tensors.items() if not n.startswith("running")}

    @property
    def leaves(self) -> list[Tensor]:
        return list(self.named_leaves.values())

    def with_leaves(self, leaves: Sequence[Tensor]) -> Case:
        moved = dict(zip(self.named_leaves, leaves, strict=True))
        return replace(self, tensors={**self.tensors, **moved})

    @property
    def arguments(self) -> tuple[Tensor, list[Tensor], list[Tensor | None]]:
        weights = [x for name, x in self.tensors.items() if name.startswith("weight")]
        names = ("gamma", "beta", "running_mean", "running_var")
        return self.tensors["x"], weights, [self.tensors.get(name) for name in names]

    def run(self) -> functional.ReluConvNorm:
        x, weights, values = self.arguments
        norm = Norm(self.kind, 1e-3, *values)
        settings = {"stride": self.stride, "groups": self.groups, "relu": self.relu}
        return functional.relu_conv_norm(x, weights, norm, **settings)

    def results(self, backend: str) -> dict[str, Tensor]:
        """Every output, and the gradient of every leaf for a random gradient of the output."""
        with use_backend(backend):
            out = self.run()
            generator = torch.Generator().manual_seed(99)
            grad = torch.randn(out.output.shape, dtype=torch.float64, generator=generator)
            grads = torch.autograd.grad(out.output, self.leaves, grad.to(out.output.dtype))
        names = (f"gradient of {name}" for name in self.named_leaves)
        return {**out._asdict(), **dict(zip(names, grads, strict=True))}


def make_case(
    form: tuple[int, int] = (1, 1),
    *,
    batch: int = 3,
    channels: int = 10,
    out_channels: int = 16,
    size: tuple[int, int] = (6, 4),
    norm: str = "batch",
    affine: bool = True,
    groups: int = 1,
    offset: float = 0.2,
    relu: bool = True,
    seed: int = 0,
) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    kernel, stride = form
    weight = (out_channels, channels, kernel, kernel)
    tensors = {"x": draw(groups * batch, channels, *size) + offset}
    if kernel == 2:
        weight = (out_channels // 2, channels, 1, 1)
        tensors["weight 1"] = draw(*weight) / channels**0.5
    tensors["weight 2"] = draw(*weight) / (channels**0.5 * kernel)
    if affine:
        tensors |= {"gamma": draw(out_channels), "beta": draw(out_channels)}
    if norm == "running":
        tensors["running_mean"] = draw(out_channels)
        tensors["running_var"] = draw(out_channels).abs() + 0.5
    return Case(tensors, norm, stride, groups, relu).to(torch.float64)


def assert_matches_reference(case: Case, tolerance: float = 1e-10) -> None:
    """In float64, where nothing is nearer to the truth, within `tolerance` of the largest value."""
    truth = case.results("reference")
    for name, value in case.results("fused").items():
        assert_same(name, value, truth[name], tolerance)


def assert_close_to_reference(case: Case) -> None:
    """Under the closeness policy in float32, and in float64."""
    assert_matches_reference(case)
    single = case.to(torch.float32)
    actual, eager = single.results("fused"), single.results("reference")
    truth = single.to(torch.float64).results("reference")
    for name, value in actual.items():
        assert_close(name, value, eager[name], truth[name], gradient=name.startswith("gradient"))


@every_form
@pytest.mark.parametrize("norm", ["batch", "running"])
@pytest.mark.parametrize("affine", [False, True])
def test_value_and_gradients(backend, form, norm, affine):
    assert_close_to_reference(make_case(form, norm=norm, affine=affine))


@pytest.mark.parametrize(
    "channels", [(4, 16), (6, 16), (10, 6), (36, 16), (64, 16), (16, 36), (3, 2), (5, 10), (8, 8)]
)
def test_any_number_of_channels(backend, channels):
    for form in FORMS:
        case = make_case(form, channels=channels[0], out_channels=channels[1])
        assert_close_to_reference(case)


# Strips of 64 and of 16 pixels, the last one of fewer; last vectors that are not whole.
@pytest.mark.parametrize("channels", [(48, 16), (256, 64), (16, 20), (300, 33)])
def test_strips_of_pixels(backend, channels):
    sizes = {"channels": channels[0], "out_channels": channels[1], "size": (9, 19)}
    for norm in ("batch", "running"):
        assert_close_to_reference(make_case(norm=norm, **sizes))


@every_form
@pytest.mark.parametrize("norm", ["batch", "running"])
def test_without_a_relu(form, norm):
    case = make_case(form, norm=norm, relu=False, groups=2, channels=3)
    assert_close_to_reference(case)
    small = make_case(form, norm=norm, relu=False, channels=3, out_channels=2, size=(4, 2), batch=2)

    def function(*leaves: Tensor) -> Tensor:
        return small.with_leaves(leaves).run().output

    assert torch.autograd.gradcheck(function, small.leaves)
    assert torch.autograd.gradgradcheck(function, small.leaves, fast_mode=True)


@every_form
@pytest.mark.parametrize("norm", ["batch", "running"])
def test_same_bits_where_nothing_is_kept_for_a_backward(backend, form, norm):
    case = make_case(form, norm=norm, groups=2, size=(8, 18)).to(torch.float32)
    kept = []
    with observed("relu_conv_norm", lambda outputs, *_: kept.append(outputs[1].numel() > 0)):
        expected = case.run()
        with torch.no_grad():
            found = case.run()
    assert kept == [True, False]
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("size", [(7, 5), (1, 9), (2, 1), (33, 20), (1, 1)])
def test_any_size(backend, size):
    for form in FORMS[:-1]:
        assert_close_to_reference(make_case(form, size=size, batch=5, out_channels=6))


@pytest.mark.parametrize("channels", [(4, 33), (1, 97), (2, 64)])
def test_more_output_channels_than_an_image_has_values(backend, channels):
    shape = {"channels": channels[0], "out_channels": channels[1], "batch": 5}
    assert_matches_reference(make_case(size=(1, 1), **shape))
    assert_matches_reference(make_case((3, 2), size=(1, 2), **shape))


@every_form
def test_groups_have_their_own_statistics(backend, form):
    case = make_case(form, groups=3)
    assert_close_to_reference(case)
    assert_close_to_reference(make_case(form, groups=3, norm="running"))
    out = case.run()
    for group in range(3):
        rows = slice(3 * group, 3 * group + 3)
        alone = replace(case, tensors={**case.tensors, "x": case.tensors["x"][rows]}, groups=1)
        output, mean, var = alone.run()
        assert torch.equal(out.output[rows], output)
        assert torch.equal(out.mean[group], mean[0])
        assert torch.equal(out.var[group], var[0])


@every_form
def test_same_bits_at_any_number_of_threads(backend, form):
    case = make_case(form, batch=5, size=(16, 16), groups=2).to(torch.float32)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(case.results("fused"))
    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.equal(value, other[name]), name


def test_variance_far_from_zero_mean(backend):
    # mean / deviation = 1000: what is lost is the rounding of the convolution, not the variance's.
    single = make_case(size=(32, 32), offset=1000.0).to(torch.float32)
    actual, eager = single.results("fused"), single.results("reference")
    truth = single.to(torch.float64).results("reference")
    assert_close("var", actual["var"], eager["var"], truth["var"])


@every_form
@pytest.mark.parametrize("norm", ["batch", "running"])
def test_first_and_second_derivative(backend, form, norm):
    case = make_case(form, channels=3, out_channels=2, size=(4, 2), norm=norm, groups=2, batch=2)

    def function(*leaves: Tensor) -> Tensor:
        return case.with_leaves(leaves).run().output

    assert torch.autograd.gradcheck(function, case.leaves)
    assert torch.autograd.gradgradcheck(function, case.leaves, fast_mode=True)


@pytest.mark.parametrize("wanted", range(5))
def test_second_derivative_of_some_arguments(wanted):
    case = make_case((2, 2), groups=2)
    case = case.with_leaves([x.detach() for x in case.leaves])
    leaf = case.leaves[wanted].requires_grad_()
    seconds = []
    for backend in ("fused", "reference"):
        with use_backend(backend):
            loss = case.run().output.sin().sum()
            (grad,) = torch.autograd.grad(loss, leaf, create_graph=True)
            seconds += torch.autograd.grad(grad.square().sum(), leaf)
    torch.testing.assert_close(*seconds, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", [(1, 1), (3, 2), (2, 2)], ids=str)
@pytest.mark.parametrize(("norm", "affine"), [("batch", True), ("running", False)])
def test_opcheck(form, norm, affine):
    case = make_case(form, channels=3, size=(2, 4), norm=norm, affine=affine)
    x, weights, values = case.arguments
    settings = (1 if norm == "batch" else 2, 1e-3, case.stride, case.groups, affine)
    torch.library.opcheck(_ops.relu_conv_norm, (x, weights, *values, *settings))
    plain = case.with_leaves([y.detach() for y in case.leaves]).arguments
    torch.library.opcheck(_ops.relu_conv_norm, (*plain[:2], *plain[2], *settings, False))
    if form == (3, 2):  # nine taps, differentiated twice: the backward takes long to trace
        return
    output, *kept = (y.detach() for y in _ops.relu_conv_norm(x, weights, *values, *settings))
    backward = (torch.randn_like(output), x, *kept, weights, *values[:2], *settings)
    mask = [affine, *[True] * len(weights), affine, affine]
    torch.library.opcheck(_ops.relu_conv_norm_backward, (*backward, mask))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("form", [(3, 1), (2, 2)], ids=str)
def test_compiles_as_one_graph(form, dynamic):
    case = make_case(form).to(torch.float32)

    def step(*leaves: Tensor) -> Tensor:
        return case.with_leaves(leaves).run().output.relu().sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    expected = torch.autograd.grad(step(*case.leaves), case.leaves)
    actual = torch.autograd.grad(compiled(*case.leaves), case.leaves)
    torch.testing.assert_close(actual, expected)


def test_autocast_computes_in_single_precision():
    case = make_case((2, 2)).to(torch.bfloat16)
    single = case.to(torch.float32).run().output
    with torch.autocast("cpu", torch.float16):
        assert torch.equal(case.run().output, single)
    with torch.autocast("cpu", torch.bfloat16):
        out = case.run()
    assert (out.output.dtype, out.mean.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(out.output, single.bfloat16())
    out.output.sum().backward()
    assert {leaf.grad.dtype for leaf in case.leaves} == {torch.bfloat16}


@pytest.mark.parametrize("layout", ["contiguous", "view with an offset", "transposed", "expanded"])
@pytest.mark.parametrize("form", [(3, 2), (2, 2)], ids=str)
def test_any_strides(backend, form, layout):
    def strided(y: Tensor) -> Tensor:
        if layout == "view with an offset":
            return torch.cat([y, y, y], dim=1)[:, y.shape[1] : 2 * y.shape[1]]
        if layout == "transposed":
            return y.transpose(0, -1).contiguous().transpose(0, -1)
        return y[:1].expand_as(y) if layout == "expanded" else y.contiguous()

    case = make_case(form, affine=False)
    moved = case.with_leaves([strided(x.detach()).requires_grad_() for x in case.leaves])
    plain = case.with_leaves([x.detach().contiguous().requires_grad_() for x in moved.leaves])
    out, expected = moved.run().output, plain.run().output
    assert torch.equal(out, expected)
    assert out.is_contiguous(memory_format=torch.channels_last)
    grad = strided(torch.randn(out.shape, dtype=out.dtype))
    actual = torch.autograd.grad(out, moved.leaves, grad)
    truth = torch.autograd.grad(expected, plain.leaves, grad.contiguous())
    assert all(torch.equal(a, b) for a, b in zip(actual, truth, strict=True))


@every_form
@pytest.mark.parametrize("norm", ["batch", "running"])
def test_empty_batch(backend, form, norm):
    case = make_case(form, batch=0, norm=norm, groups=2)
    actual, expected = case.results("fused"), case.results("reference")
    assert all(torch.equal(value, expected[name]) for name, value in actual.items())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(backend, value):
    case = make_case((3, 1), norm="running", channels=4)
    case.tensors["x"].data[1, 2, 3, 1] = value
    expected = case.results("reference")
    for name, actual in case.results("fused").items():
        torch.testing.assert_close(actual, expected[name], equal_nan=True, rtol=1e-9, atol=1e-9)


def test_only_wanted_gradients_are_computed(backend):
    seen = []

    def see(outputs, *_: object) -> None:
        x, weights, gamma, beta = outputs
        seen.append([g.numel() > 0 for g in (x, *weights, gamma, beta)])

    with observed("relu_conv_norm_backward", see):
        for form in FORMS:
            case = make_case(form)
            every = torch.autograd.grad(case.run().output.sum(), case.leaves)
            assert all(seen.pop())
            for i, leaf in enumerate(case.leaves):
                leaves = [x.detach() for x in case.leaves]
                leaves[i] = leaf
                (grad,) = torch.autograd.grad(case.with_leaves(leaves).run().output.sum(), leaf)
                assert torch.equal(grad, every[i])
                assert seen.pop() == [j == i for j in range(len(leaves))]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    ("build", "arguments"),
    [
        (operations.ReLUConvBN, (12, 16, 1, 1, 0)),
        (operations.ReLUConvBN, (64, 16, 3, 2, 1)),
        (operations.FactorizedReduce, (36, 16)),
    ],
)
def test_equals_the_original_modules(backend, build, arguments, affine, training):
    module = build(*arguments, affine=affine).double().train(training)
    nn.init.normal_(module.norm.running_mean)
    twin = nn.BatchNorm2d(16, affine=affine).double()
    twin.load_state_dict(module.norm.state_dict())
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    x = torch.randn(3, arguments[0], 8, 8, dtype=torch.float64, requires_grad=True)
    values = (module.norm.weight, module.norm.bias, twin.running_mean, twin.running_var)
    out = functional.relu_conv_norm(
        x,
        [convolution.weight for convolution in convolutions],
        Norm("batch" if training else "running", twin.eps, *values),
        stride=convolutions[0].stride[0],
    )
    expected = module(x)
    torch.testing.assert_close(out.output, expected)
    leaves = [x, *module.parameters()]
    grad = torch.randn(expected.shape, dtype=torch.float64)
    actual, truth = (torch.autograd.grad(y, leaves, grad) for y in (out.output, expected))
    torch.testing.assert_close(actual, truth, rtol=1e-9, atol=1e-9)
    # The running statistics that the module moved follow from the returned ones.
    if training:
        count = expected.numel() // 16
        functional.update_running_statistics([twin], out.mean, out.var, count)
    torch.testing.assert_close(twin.state_dict(), module.norm.state_dict())


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    form=st.sampled_from(FORMS),
    batch=st.integers(2, 4),
    channels=st.integers(1, 40),
    out_channels=st.integers(1, 20),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    norm=st.sampled_from(["batch", "running"]),
    affine=st.booleans(),
    groups=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_any_shape(backend, form, size, out_channels, **arguments):
    if form == (2, 2):
        size = (2 * size[0], 2 * size[1])
    case = make_case(form, size=size, out_channels=2 * out_channels, **arguments)
    assert_matches_reference(case, 1e-8)
