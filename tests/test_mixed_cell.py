# SPDX-License-Identifier: Apache-2.0
"""mixed_cell against its specification, at every CPU capability: kinds, edges, cells, layouts."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from cell_cases import (
    DARTS,
    KINDS,
    NASBENCH201,
    S1,
    S2,
    S3,
    WITHOUT_REDUCE,
    assert_matches_reference,
    make_case,
)
from torch import Tensor, nn

from darts_fast import functional
from darts_fast.backend import use_backend
from darts_fast.functional import Candidate, Norm
from darts_fast.nn import nasbench201_operations as nasbench201
from darts_fast.nn import operations

pytestmark = pytest.mark.filterwarnings("error")

KINDS_BY_STRIDE = [
    (name, stride)
    for name in KINDS
    for stride in (1, 2)
    if (name, stride) not in (("identity", 2), ("reduce", 1))
]


@pytest.mark.parametrize(("name", "stride"), KINDS_BY_STRIDE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_kind(backend, dtype, name, stride):
    for norm, affine in (("batch", False), ("batch", True), ("running", False), ("running", True)):
        case = {"names": (name,) * 3, "stride": stride, "norm": norm, "affine": affine}
        assert_matches_reference(dtype, **case)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "names", [DARTS, S1, S2, S3, NASBENCH201], ids=["darts", "s1", "s2", "s3", "nasbench201"]
)
@pytest.mark.parametrize(("norm", "affine"), [("batch", False), ("batch", True), ("running", True)])
def test_edges_of_the_spaces(backend, names, stride, norm, affine):
    for dtype in (torch.float32, torch.float64):
        assert_matches_reference(
            *(dtype,), names=names, stride=stride, norm=norm, affine=affine, channels=16
        )


@pytest.mark.parametrize("stride", [1, 2], ids=["normal", "reduction"])
def test_a_cell_of_darts(backend, stride):
    # Behind many layers a rounding of single precision soon puts a value on the other side of a
    # ReLU, whose gradient then differs; so few values there, and many in double precision.
    cell = {"inputs": 2, "nodes": 4, "multiplier": 4, "stride": stride}
    assert_matches_reference(torch.float64, **cell, channels=16, size=(8, 8))
    assert_matches_reference(torch.float32, **cell, channels=4, batch=3, affine=True)


def test_a_cell_whose_edges_differ(backend):
    names = (S2, ("skip", "dil_3"), ("max_pool", "sep_5"), ("dil_5", "sep_3"), ("none", "skip"))
    assert_matches_reference(names=names, inputs=2, nodes=2, multiplier=2)


@pytest.mark.parametrize("affine", [False, True])
def test_a_cell_of_nasbench201(backend, affine):
    for dtype in (torch.float32, torch.float64):
        assert_matches_reference(
            *(dtype,), names=NASBENCH201, nodes=3, multiplier=1, channels=16, affine=affine
        )


def test_edges_in_any_order_some_twice_some_missing(backend):
    # Node 4 has no edges, node 5 reads it, two edges join states 0 and 3, node 2 is not output.
    edges = ((4, 5), (0, 3), (1, 2), (0, 3), (2, 3), (3, 5))
    assert_matches_reference(
        names=S3, edges=edges, inputs=2, nodes=4, multiplier=3, channels=4, affine=True
    )


@pytest.mark.parametrize("channels", [3, 4, 6, 10, 16, 36, 64])
def test_any_number_of_channels(backend, channels):
    assert_matches_reference(names=DARTS, channels=channels)
    assert_matches_reference(names=NASBENCH201, channels=channels, affine=True)
    if channels % 2 == 0:
        assert_matches_reference(names=DARTS, channels=channels, stride=2)


@pytest.mark.parametrize("size", [(7, 5), (1, 9), (2, 1), (33, 20)])
@pytest.mark.parametrize("stride", [1, 2])
def test_any_size(backend, size, stride):
    names = (*WITHOUT_REDUCE, "dense_3", "sep_7")
    assert_matches_reference(names=names, size=size, stride=stride, batch=5)


def test_one_position_per_image(backend):
    names = (*WITHOUT_REDUCE, "skip", "dense_1", "dense_3")
    assert_matches_reference(names=names, size=(1, 1), batch=5)
    assert_matches_reference(names=names, size=(1, 1), batch=1, norm="running", affine=True)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_groups_have_their_own_weights_and_statistics(backend, masked, stride):
    arguments = {"groups": 3, "masked": masked, "stride": stride, "affine": True}
    assert_matches_reference(torch.float64, **arguments, inputs=2, nodes=2, multiplier=2)
    assert_matches_reference(torch.float32, **arguments)
    case = make_case(**arguments)
    assert masked == (case.active is not None and not bool(case.active.all()))
    out = case.run()
    for group in range(3):
        rows = slice(2 * group, 2 * group + 2)
        alone = replace(
            case,
            states=[x[rows] for x in case.states],
            weights=case.weights[group],
            groups=1,
            active=None if case.active is None else case.active[group],
        ).run()
        assert torch.equal(out.output[rows], alone.output)
        assert torch.equal(out.mean[group], alone.mean[0])
        assert torch.equal(out.var[group], alone.var[0])


def test_same_bits_at_any_number_of_threads(backend):
    cell = make_case(
        inputs=2, nodes=2, multiplier=2, batch=5, size=(16, 16), channels=10, groups=2, masked=True
    )
    for case in (cell.to(torch.float32), make_case((*NASBENCH201, "reduce"), stride=2, batch=7)):
        results = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(case.results("fused"))
        for other in results[1:]:
            for name, value in results[0].items():
                assert torch.equal(value, other[name]), name


@pytest.mark.parametrize(("channels", "dtype"), [(32, torch.float32), (16, torch.float64)])
def test_maps_that_no_cache_holds(backend, channels, dtype):
    # A map is 2 MiB: the two edges of the last node are a part each, in the backward too, and the
    # outputs of their convolutions pass through memory that both use.
    case = make_case(
        *(("sep_3", "sep_5", "dil_3"),),
        inputs=1,
        nodes=2,
        multiplier=2,
        batch=16,
        size=(33, 32),
        channels=channels,
    ).to(dtype)
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        results.append(case.results("fused"))
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name
    expected = case.results("reference")
    for name in ("output", "output alone", "mean", "var"):
        torch.testing.assert_close(results[0][name], expected[name], rtol=1e-3, atol=1e-3)


def test_ties_of_a_max_pool_go_to_the_first_in_scan_order(backend):
    # Constant images: all cells of a window tie. Torch names the first in scan order.
    for stride in (1, 2):
        case = make_case(("plain_max",), stride=stride, size=(5, 6))
        case.states = [torch.full_like(case.states[0], 3.0).requires_grad_()]
        pooled = nn.functional.max_pool2d(case.states[0], 3, stride, 1) * case.weights[0, 0]
        grad = torch.randn_like(pooled)
        (expected,) = torch.autograd.grad(pooled, case.states, grad)
        (actual,) = torch.autograd.grad(case.run().output, case.states, grad)
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
        assert bool((actual == 0).any())


def test_a_max_pool_of_negative_values_ignores_the_padding(backend):
    case = make_case(("plain_max", "plain_avg"), offset=-50.0)
    expected = nn.functional.max_pool2d(case.states[0], 3, 1, 1) * case.weights[0, 0]
    average = nn.functional.avg_pool2d(case.states[0], 3, 1, 1, count_include_pad=False)
    torch.testing.assert_close(case.run().output, expected + average * case.weights[0, 1])


def test_variance_far_from_zero_mean(backend):
    # mean / deviation = 1000, where sums of squares in single precision lose 1e-2 of the variance.
    # What is left is the rounding of the dense convolution's own output.
    names = ("max_pool", "avg_pool", "dense_1")
    arguments = {"names": names, "size": (32, 32), "offset": 1000.0, "channels": 16}
    assert_matches_reference(**arguments)
    single = make_case(**arguments).to(torch.float32)
    out, truth = single.run(), single.to(torch.float64).run()
    assert ((out.var.double() - truth.var).abs() / truth.var).max().item() < 1e-4


@pytest.mark.parametrize(
    "layout", ["contiguous", "channels_last", "view with an offset", "transposed", "expanded"]
)
def test_any_strides(backend, layout):
    def strided(y: Tensor) -> Tensor:
        if layout == "channels_last":
            return y.contiguous(memory_format=torch.channels_last)
        if layout == "view with an offset":
            padded = torch.randn(y.shape[0], y.shape[1] + 3, *y.shape[2:], dtype=y.dtype)
            padded[:, 2:-1] = y
            return padded[:, 2:-1]
        if layout == "transposed":
            return y.transpose(2, 3).contiguous().transpose(2, 3)
        return y[:1].expand_as(y) if layout == "expanded" else y.contiguous()

    case = make_case(inputs=2)
    # Parameters too; their own views have no offset, only other strides.
    moved = case.map(
        lambda x: (
            strided(x.detach()) if x.dim() == 4 and x.shape == case.states[0].shape else x.detach()
        ),
        lambda x: x,
    )
    moved = moved.map(lambda x: x.detach().requires_grad_(), lambda x: x)
    plain = moved.map(lambda x: x.detach().contiguous().requires_grad_(), lambda x: x)
    out, expected = moved.run().output, plain.run().output
    assert torch.equal(out, expected)
    assert out.is_contiguous(memory_format=torch.channels_last)
    grad = strided(torch.randn(out.shape, dtype=out.dtype))
    actual = torch.autograd.grad(out, moved.leaves, grad)
    truth = torch.autograd.grad(expected, plain.leaves, grad.contiguous())
    assert all(torch.equal(a, b) for a, b in zip(actual, truth, strict=True))


@pytest.mark.parametrize("norm", ["batch", "running"])
def test_empty_batch(backend, norm):
    case = make_case(batch=0, inputs=2, nodes=2, multiplier=2, norm=norm, affine=True)
    out = case.run()
    assert out.output.shape == (0, 12, 6, 4)
    with use_backend("reference"):
        expected = case.run()
    assert torch.equal(out.mean, expected.mean)
    assert torch.equal(out.var, expected.var)
    grads = torch.autograd.grad(out.output.sum(), case.leaves)
    assert [g.shape for g in grads] == [leaf.shape for leaf in case.leaves]
    assert all(bool((g == 0).all()) for g in grads)


def as_norm(module: nn.BatchNorm2d) -> Norm:
    return Norm(
        "batch" if module.training else "running",
        *(module.eps, module.weight, module.bias, module.running_mean, module.running_var),
    )


def as_candidate(module: nn.Module) -> Candidate:
    """What an original operation is called here; a pool is followed by a batch norm in a list."""
    convolutions = tuple(m.weight for m in module.modules() if isinstance(m, nn.Conv2d))
    norms = tuple(as_norm(m) for m in module.modules() if isinstance(m, nn.BatchNorm2d))
    if isinstance(module, (operations.Zero, nasbench201.Zero)):
        return Candidate("none")
    if isinstance(module, operations.Identity):
        return Candidate("identity")
    kinds = {
        operations.SepConv: "separable_twice",
        operations.DilConv: "separable",
        operations.FactorizedReduce: "factorized_reduce",
        nasbench201.ReLUConvBN: "dense",
    }
    if type(module) in kinds:
        dilation = 2 if isinstance(module, operations.DilConv) else 1
        return Candidate(kinds[type(module)], convolutions, norms, dilation)
    pool = module if isinstance(module, nasbench201.Pooling) else module[0]
    return Candidate("max_pool" if isinstance(pool, nn.MaxPool2d) else "avg_pool", (), norms)


def modules_of(space: str, stride: int, affine: bool) -> list[nn.Module]:
    if space == "nasbench201":
        return [op(16, 16, stride, affine, True) for op in nasbench201.OPS.values()]
    names = (
        *("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect"),
        *("sep_conv_3x3", "sep_conv_5x5", "sep_conv_7x7", "dil_conv_3x3", "dil_conv_5x5"),
    )
    modules = [operations.OPS[name](16, stride, affine) for name in names]
    return [
        nn.Sequential(op, nn.BatchNorm2d(16, affine=affine)) if "pool" in name else op
        for name, op in zip(names, modules, strict=True)
    ]


@pytest.mark.parametrize(("space", "stride"), [("darts", 1), ("darts", 2), ("nasbench201", 1)])
@pytest.mark.parametrize("training", [True, False])
def test_equals_the_original_modules(backend, space, stride, training):
    modules = nn.ModuleList(modules_of(space, stride, affine=True)).double().train(training)
    batch_norms = [m for m in modules.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in batch_norms:
        for value in (norm.weight, norm.bias, norm.running_mean):
            nn.init.normal_(value)
    x = torch.randn(3, 16, 8, 8, dtype=torch.float64, requires_grad=True)
    w = torch.randn(len(modules), dtype=torch.float64, requires_grad=True)
    twins = copy.deepcopy(batch_norms)
    out = functional.mixed_op(x, w, [as_candidate(module) for module in modules], stride=stride)
    expected = sum(weight * module(x) for weight, module in zip(w, modules, strict=True))
    torch.testing.assert_close(out.output, expected)
    leaves = [x, w, *modules.parameters()]
    grad = torch.randn(expected.shape, dtype=torch.float64)
    for actual, truth in zip(
        torch.autograd.grad(out.output, leaves, grad),
        torch.autograd.grad(expected, leaves, grad),
        strict=True,
    ):
        torch.testing.assert_close(actual, truth, rtol=1e-9, atol=1e-9)
    # The running statistics that the modules moved follow from the returned ones.
    if training:
        count = expected.numel() // 16
        functional.update_running_statistics(twins, out.mean[0], out.var[0], count)
    for twin, norm in zip(twins, batch_norms, strict=True):
        torch.testing.assert_close(twin.state_dict(), norm.state_dict())
