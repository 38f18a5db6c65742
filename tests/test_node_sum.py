# SPDX-License-Identifier: Apache-2.0
"""node_sum against its specification, at every CPU capability."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from closeness import assert_close
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from darts_fast import _ops, functional, reference
from darts_fast.backend import use_backend

pytestmark = [
    pytest.mark.filterwarnings("error"),
    # torch 2.14's own opcheck reads the gradient of a tensor that is no leaf.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


@dataclass
class Case:
    """Arguments of one call; `leaves` are those with a gradient."""

    maps: list[Tensor]
    weights: Tensor
    norms: list[str]
    gamma: Tensor | None
    beta: Tensor | None
    running_mean: Tensor
    running_var: Tensor
    groups: int
    active: Tensor | None

    def to(self, dtype: torch.dtype) -> Case:
        def leaf(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.detach().to(dtype).requires_grad_()

        return replace(
            self,
            maps=[leaf(y) for y in self.maps],
            weights=leaf(self.weights),
            gamma=leaf(self.gamma),
            beta=leaf(self.beta),
            running_mean=self.running_mean.to(dtype),
            running_var=self.running_var.to(dtype),
        )

    @property
    def leaves(self) -> list[Tensor]:
        return [
            leaf for leaf in (*self.maps, self.weights, self.gamma, self.beta) if leaf is not None
        ]

    def run(self) -> functional.NodeSum:
        return functional.node_sum(
            self.maps,
            self.weights,
            self.norms,
            gamma=self.gamma,
            beta=self.beta,
            running_mean=self.running_mean,
            running_var=self.running_var,
            groups=self.groups,
            active=self.active,
        )

    def results(self, backend: str, grad: Tensor) -> dict[str, Tensor]:
        with use_backend(backend):
            out = self.run()
            grads = torch.autograd.grad(
                out.node, self.leaves, grad.to(out.node.dtype), materialize_grads=True
            )
        named = {f"gradient {i}": g for i, g in enumerate(grads)}
        return {"node": out.node, "mean": out.mean, "var": out.var, **named}


def make_case(
    *,
    terms: int = 5,
    batch: int = 3,
    channels: int = 16,
    size: tuple[int, int] = (6, 5),
    groups: int = 1,
    norms: str | list[str] = "batch",
    affine: bool = True,
    masked: bool = False,
    offset: float = 0.5,
    seed: int = 0,
) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    maps = [draw(groups * batch, channels, *size) * (k + 1) + offset for k in range(terms)]
    return Case(
        maps=maps,
        weights=draw(groups, terms),
        norms=[norms] * terms if isinstance(norms, str) else norms,
        gamma=draw(terms, channels) if affine else None,
        beta=draw(terms, channels) if affine else None,
        running_mean=draw(terms, channels),
        running_var=draw(terms, channels).abs() + 0.5,
        groups=groups,
        active=draw(groups, terms) > -0.3 if masked else None,
    ).to(torch.float64)


def draw_gradient(case: Case) -> Tensor:
    # Not the maps' generator: BatchNorm projects a gradient proportional to its map away.
    generator = torch.Generator().manual_seed(1234)
    return torch.randn(case.maps[0].shape, dtype=torch.float64, generator=generator)


def assert_matches_reference(case: Case, dtype: torch.dtype = torch.float32) -> None:
    """Compares every output and gradient of the kernels under the closeness policy."""
    rounded = case.to(dtype)
    truth_case = rounded.to(torch.float64)  # the same numbers: rounding the input is no error
    grad = draw_gradient(case).to(dtype).double()
    actual = rounded.results("fused", grad)
    eager = rounded.results("reference", grad)
    truth = truth_case.results("reference", grad)
    for name, value in actual.items():
        assert_close(name, value, eager[name], truth[name], gradient=name.startswith("gradient"))


MIXED = ["batch", "none", "running", "batch", "batch"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norms", ["batch", "running", "none", MIXED], ids=str)
@pytest.mark.parametrize("affine", [True, False])
def test_value_and_gradients(backend, dtype, norms, affine):
    assert_matches_reference(make_case(norms=norms, affine=affine), dtype)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 10, 16, 24, 36, 40, 64, 130])
def test_any_number_of_channels(backend, channels):
    assert_matches_reference(make_case(channels=channels, norms=MIXED))


def test_many_tiles_and_terms(backend):
    # 35 maps of 2 x 40 x 33 positions: whole tiles, a partial last one, partial groups of terms.
    assert_matches_reference(make_case(terms=35, batch=2, size=(40, 33), channels=10))


@pytest.mark.parametrize("masked", [True, False])
def test_groups_have_their_own_weights_and_statistics(backend, masked):
    case = make_case(groups=3, norms=MIXED, masked=masked)
    assert_matches_reference(case)
    out = case.run()
    for group in range(3):
        rows = slice(group * 3, group * 3 + 3)
        alone = replace(
            case,
            maps=[y[rows] for y in case.maps],
            weights=case.weights[group],
            groups=1,
            active=None if case.active is None else case.active[group],
        ).run()
        assert torch.equal(out.node[rows], alone.node)
        assert torch.equal(out.mean[group], alone.mean[0])


def test_inactive_maps_are_not_read(backend):
    case = make_case(norms=MIXED)
    active = torch.tensor([True, False, False, False, True])
    poisoned = [y if on else y * float("inf") for y, on in zip(case.maps, active, strict=True)]
    with_poison = replace(case, maps=poisoned, active=active).to(torch.float64)
    out = with_poison.run()
    chosen = [k for k in range(5) if active[k]]
    alone = functional.node_sum(
        [case.maps[k] for k in chosen],
        case.weights[:, chosen],
        [case.norms[k] for k in chosen],
        gamma=case.gamma[chosen],
        beta=case.beta[chosen],
    )
    torch.testing.assert_close(out.node, alone.node, rtol=1e-14, atol=1e-14)
    grads = torch.autograd.grad(out.node.sum(), with_poison.leaves)
    assert all(bool(g.isfinite().all()) for g in grads)
    assert all(bool((grads[k] == 0).all()) for k in range(5) if not active[k])
    assert bool((grads[5][0, ~active] == 0).all())


def test_all_inactive_gives_zeros(backend):
    case = replace(make_case(), active=torch.zeros(5, dtype=torch.bool))
    out = case.run()
    assert bool((out.node == 0).all())
    assert all(bool((g == 0).all()) for g in torch.autograd.grad(out.node.sum(), case.leaves))


def test_multiplied_zero_weight_spreads_nan(backend):
    # Without the activity table a zero weight is an ordinary number, as in the originals that
    # multiply: 0 * inf is NaN.
    case = make_case(norms="none")
    case.maps[1] = (case.maps[1] * float("inf")).detach()
    case.weights = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    assert bool(case.run().node.isnan().all())


def test_variance_far_from_zero_mean(backend):
    # mean / deviation = 1000, where sums of squares in single precision lose the variance.
    case = make_case(offset=0.0, size=(32, 32), norms="batch", affine=False)
    shifted = replace(case, maps=[y / (k + 1) + 1000 for k, y in enumerate(case.maps)])
    assert_matches_reference(shifted)
    single = shifted.to(torch.float32)
    out = single.run()
    truth = single.to(torch.float64).run()
    assert ((out.var.double() - truth.var).abs() / truth.var).max().item() < 1e-5


def test_matches_batch_norm_modules():
    norms = [torch.nn.BatchNorm2d(16, affine=False) for _ in range(3)]
    case = make_case(terms=3, affine=False).to(torch.float32)
    expected = sum(w * bn(y) for w, bn, y in zip(case.weights[0], norms, case.maps, strict=True))
    out = case.run()
    torch.testing.assert_close(out.node, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_bits_at_any_number_of_threads(backend, dtype):
    case = make_case(terms=7, batch=4, size=(32, 32), channels=10, groups=2).to(dtype)
    grad = draw_gradient(case)
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        results.append(case.results("fused", grad))
    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.equal(value, other[name]), name


ONE_OF_EACH = ["batch", "none", "running"]


def small_case(norms: list[str] = ONE_OF_EACH, *, masked: bool = True) -> Case:
    return make_case(
        terms=3,
        batch=2,
        channels=2,
        size=(2, 1),
        groups=2,
        norms=norms,
        masked=masked,
        seed=3,
    )


def as_function(case: Case) -> Callable[..., Tensor]:
    def function(*leaves: Tensor) -> Tensor:
        *maps, weights, gamma, beta = leaves
        return replace(case, maps=maps, weights=weights, gamma=gamma, beta=beta).run().node

    return function


def test_gradcheck(backend):
    case = small_case()
    assert torch.autograd.gradcheck(as_function(case), case.leaves)


@pytest.mark.parametrize("norms", [ONE_OF_EACH, ["batch"] * 3], ids=str)
def test_gradgradcheck(norms):
    case = small_case(norms)
    assert torch.autograd.gradgradcheck(as_function(case), case.leaves)


def test_second_derivative_of_some_arguments():
    case = make_case()
    case.maps = [y.detach() for y in case.maps]
    (grad,) = torch.autograd.grad(case.run().node.sin().sum(), case.weights, create_graph=True)
    (actual,) = torch.autograd.grad(grad.square().sum(), case.weights)
    with use_backend("reference"):
        (grad,) = torch.autograd.grad(case.run().node.sin().sum(), case.weights, create_graph=True)
        (expected,) = torch.autograd.grad(grad.square().sum(), case.weights)
    torch.testing.assert_close(actual, expected)


def test_only_wanted_gradients_are_computed(monkeypatch):
    seen = []
    inner = _ops.node_sum_backward
    monkeypatch.setattr(
        _ops._node_sum, "node_sum_backward", lambda *a: seen.append(a[-1]) or inner(*a)
    )
    case = make_case()
    case.maps = [y.detach() for y in case.maps]
    case.maps[2].requires_grad_()
    case.gamma = case.gamma.detach()
    case.run().node.sum().backward()
    assert seen == [[False, False, True, False, False, True, False, True]]
    assert case.maps[0].grad is None
    assert case.maps[2].grad is not None
    assert case.gamma.grad is None


def op_arguments(case: Case) -> tuple:
    return (
        case.maps,
        case.weights,
        case.gamma,
        case.beta,
        case.running_mean,
        case.running_var,
        [functional._NORMS[name] for name in case.norms],
        [1e-5] * len(case.maps),
        case.groups,
        case.active,
    )


@pytest.mark.parametrize("masked", [True, False])
def test_opcheck(masked):
    case = small_case(masked=masked)
    arguments = op_arguments(case)
    torch.library.opcheck(_ops.node_sum, arguments)
    node, mean, var = (x.detach() for x in _ops.node_sum(*arguments))
    backward = (torch.randn_like(node), *arguments[:4], mean, var, *arguments[6:], [True] * 6)
    torch.library.opcheck(_ops.node_sum_backward, backward)


def test_opcheck_without_optional_arguments():
    case = make_case(terms=2, affine=False, batch=1, channels=3).to(torch.float32)
    arguments = [*op_arguments(case)]
    arguments[4] = arguments[5] = None
    torch.library.opcheck(_ops.node_sum, tuple(arguments))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(dynamic):
    case = make_case(norms=MIXED, groups=2).to(torch.float32)

    def step(maps: list[Tensor], weights: Tensor) -> Tensor:
        return replace(case, maps=maps, weights=weights).run().node.relu().sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    expected = torch.autograd.grad(step(case.maps, case.weights), case.leaves[:6])
    actual = torch.autograd.grad(compiled(case.maps, case.weights), case.leaves[:6])
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)


def strided(y: Tensor, layout: str) -> Tensor:
    if layout == "channels_last":
        return y.contiguous(memory_format=torch.channels_last)
    if layout == "view with an offset":
        padded = torch.randn(y.shape[0], y.shape[1] + 3, *y.shape[2:], dtype=y.dtype)
        padded[:, 2:-1] = y
        return padded[:, 2:-1]
    if layout == "transposed":
        return y.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "expanded":
        return y[:1].expand_as(y)
    return y.contiguous()


@pytest.mark.parametrize(
    "layout", ["contiguous", "channels_last", "view with an offset", "transposed", "expanded"]
)
def test_any_strides(backend, layout):
    case = make_case(norms=MIXED)
    case = replace(case, maps=[strided(y.detach(), layout) for y in case.maps])
    out = case.run()
    with use_backend("reference"):
        expected = case.run()
    torch.testing.assert_close(out.node, expected.node)
    assert out.node.is_contiguous(memory_format=torch.channels_last)
    grad = strided(torch.randn_like(out.node), layout)
    (actual,) = torch.autograd.grad(out.node, case.weights, grad)
    (truth,) = torch.autograd.grad(expected.node, case.weights, grad)
    torch.testing.assert_close(actual, truth)


def test_autocast_sums_in_single_precision():
    case = make_case().to(torch.float32)
    low = replace(case, maps=[y.detach().bfloat16().requires_grad_() for y in case.maps])
    with torch.autocast("cpu", torch.bfloat16):
        out = low.run()
    assert out.node.dtype == torch.float32
    assert torch.equal(out.node, replace(low, maps=[y.float() for y in low.maps]).run().node)
    out.node.sum().backward()
    assert low.maps[0].grad.dtype == torch.bfloat16


def test_empty_batch(backend):
    case = make_case(batch=0, norms=MIXED).to(torch.float32)
    out = case.run()
    assert out.node.shape == (0, 16, 6, 5)
    grads = torch.autograd.grad(out.node.sum(), case.leaves)
    assert [g.shape for g in grads] == [leaf.shape for leaf in case.leaves]
    assert bool((grads[5] == 0).all())


def test_one_position_per_image(backend):
    assert_matches_reference(make_case(size=(1, 1), batch=4))


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    terms=st.integers(1, 9),
    batch=st.integers(1, 3),
    channels=st.integers(1, 40),
    size=st.tuples(st.integers(2, 20), st.integers(1, 20)),
    groups=st.integers(1, 3),
    affine=st.booleans(),
    masked=st.booleans(),
    data=st.data(),
    seed=st.integers(0, 1000),
)
def test_any_shape(backend, terms, batch, channels, size, groups, affine, masked, data, seed):
    names = st.sampled_from(["batch", "running", "none"])
    norms = data.draw(st.lists(names, min_size=terms, max_size=terms))
    case = make_case(
        terms=terms,
        batch=batch,
        channels=channels,
        size=size,
        groups=groups,
        norms=norms,
        affine=affine,
        masked=masked,
        seed=seed,
    )
    grad = draw_gradient(case)
    actual, truth = case.results("fused", grad), case.results("reference", grad)
    for name, value in actual.items():
        scale = truth[name].abs().max().item() if truth[name].numel() else 0.0
        torch.testing.assert_close(value, truth[name], rtol=1e-9, atol=1e-9 * (1 + scale))


MAP = torch.zeros(4, 3, 2, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([], torch.ones(0)), ValueError, "needs at least one map, got none"),
        (([MAP[0]], torch.ones(1)), ValueError, r"4 dimensions .* got \[3, 2, 2\]"),
        (([MAP, MAP[:2]], torch.ones(2)), ValueError, r"one shape, got \[2, 3, 2, 2\] for map 1"),
        (([MAP] * 8, torch.ones(3)), ValueError, r"one entry per map.* got \[3\] for 8 maps"),
        (([MAP], torch.ones(1), "layer"), ValueError, "batch, running or none, got 'layer'"),
        (([MAP], torch.ones(1), ["batch"] * 2), ValueError, "one entry per map, got 2 for 1"),
        (([MAP], torch.ones(1), "running"), ValueError, "needs running_mean and running_var"),
        (([MAP[:1, :, :1, :1]], torch.ones(1)), ValueError, "more than 1 value per channel"),
        (([MAP.half()], torch.ones(1).half()), NotImplementedError, "float32 or float64.* Half"),
        (([MAP], torch.ones(1).double()), TypeError, "weights must have the dtype of the maps"),
        (([MAP, MAP.double()], torch.ones(2)), TypeError, "every map must have the dtype"),
    ],
)
def test_errors_name_rule_and_values(arguments, error, message):
    with pytest.raises(error, match=f"node_sum: .*{message}"):
        functional.node_sum(*arguments)


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"groups": 3}, ValueError, "groups must divide the batch, got 3 groups for a batch of 4"),
        ({"groups": 0}, ValueError, "groups must divide the batch, got 0"),
        ({"gamma": torch.ones(2, 3)}, ValueError, r"gamma must have shape .*got \[2, 3\]"),
        ({"eps": [1e-5, 1e-5]}, ValueError, "eps must have one entry per map, got 2"),
        ({"active": torch.ones(2, dtype=torch.bool)}, ValueError, "active must have one entry"),
        ({"active": torch.ones(1)}, TypeError, "active must be a bool tensor on the CPU"),
    ],
)
def test_keyword_errors_name_rule_and_values(keywords, error, message):
    with pytest.raises(error, match=f"node_sum: .*{message}"):
        functional.node_sum([MAP], torch.ones(1), **keywords)


def test_the_op_checks_too():
    # The last line, for callers that skip the documented function.
    with pytest.raises(ValueError, match="norms must be 0, 1 or 2, got 7"):
        _ops.node_sum([MAP], torch.ones(1, 1), None, None, None, None, [7], [1e-5], 1, None)
    with pytest.raises(ValueError, match="output_mask must have an entry per map"):
        _ops.node_sum_backward(
            *(MAP, [MAP], torch.ones(1, 1), None, None, torch.zeros(1, 1, 3)),
            *(torch.ones(1, 1, 3), [1], [1e-5], 1, None, [True]),
        )


def test_reference_backend_is_the_reference():
    case = make_case()
    with use_backend("reference"):
        assert torch.equal(case.run().node, reference.node_sum(*op_arguments(case))[0])
    with (
        pytest.raises(ValueError, match="one of fused, reference, got 'quick'"),
        use_backend("quick"),
    ):
        pass
