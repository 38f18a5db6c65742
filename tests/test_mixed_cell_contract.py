# SPDX-License-Identifier: Apache-2.0
"""What mixed_cell promises besides its values: derivatives, activity, registration."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from cell_cases import (
    DARTS,
    KINDS,
    NASBENCH201,
    BackwardCalls,
    Case,
    make_case,
    op_arguments,
)
from torch import Tensor
from torch.autograd import forward_ad

from darts_fast import _ops, functional, reference
from darts_fast.backend import use_backend, use_bf16_maps
from darts_fast.functional import Candidate

pytestmark = [
    pytest.mark.filterwarnings("error"),
    # torch 2.14's own opcheck reads the gradient of a tensor that is no leaf.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

INPUTS_OF_A_NODE = ("plain_max", "skip", "dil_3", "dense_3")


def small_case(stride: int = 1, norm: str = "batch", names: tuple[str, ...] = ()) -> Case:
    return make_case(
        names or ("none", "max_pool", "plain_avg", "skip", "sep_3", "dil_3", "dense_1"),
        channels=2,
        size=(4, 2),
        batch=3,
        stride=stride,
        norm=norm,
        affine=True,
    )


def two_nodes(**arguments: object) -> Case:
    return make_case(INPUTS_OF_A_NODE, channels=2, size=(3, 2), nodes=2, multiplier=2, **arguments)


def as_function(case: Case) -> Callable[..., Tensor]:
    return lambda *leaves: case.with_leaves(leaves).run().output


@pytest.mark.parametrize("norm", ["batch", "running"])
@pytest.mark.parametrize("stride", [1, 2])
def test_gradcheck_of_an_edge(backend, stride, norm):
    case = small_case(stride, norm)
    assert torch.autograd.gradcheck(as_function(case), case.leaves)


def test_gradcheck_of_a_cell(backend):
    case = two_nodes(inputs=2, groups=2, masked=True)
    differentiable = [x for x in case.leaves if is_computed(case, x)]
    assert torch.autograd.gradcheck(
        lambda *leaves: with_some(case, differentiable, leaves).run().output, differentiable
    )


def is_computed(case: Case, leaf: Tensor) -> bool:
    """Whether autograd gives a gradient: not a parameter of an op that no group computes."""
    runs = torch.ones(len(case.candidates)) if case.active is None else case.active.any(0)
    owners = [
        on
        for candidate, on in zip(case.candidates, runs.tolist(), strict=True)
        for value in (
            *candidate.convolutions,
            *(p for norm in candidate.norms for p in (norm.gamma, norm.beta)),
        )
        if value is leaf
    ]
    return all(owners)


def with_some(case: Case, old: list[Tensor], new: tuple[Tensor, ...]) -> Case:
    changed = {id(a): b for a, b in zip(old, new, strict=True)}
    return case.with_leaves([changed.get(id(x), x.detach()) for x in case.leaves])


@pytest.mark.parametrize("names", [("dil_3", "plain_max", "identity"), ("sep_3",), ("dense_3",)])
def test_gradgradcheck(names):
    case = small_case(names=names)
    assert torch.autograd.gradgradcheck(as_function(case), case.leaves, fast_mode=True)


@pytest.mark.parametrize("norm", ["batch", "running"])
@pytest.mark.parametrize("stride", [1, 2])
def test_second_derivative(stride, norm):
    # Group 0 computes none of the first three ops: what running norms used is known to others only.
    case = make_case(DARTS, nodes=2, groups=2, stride=stride, norm=norm, affine=True, channels=4)
    case.active = torch.ones(2, 24, dtype=torch.bool)
    case.active[0, 2:9] = False
    case.active[:, 12] = False
    leaves = [x for x in case.leaves if is_computed(case, x)]
    assert len(leaves) < len(case.leaves)
    seconds = []
    for backend in ("fused", "reference"):
        with use_backend(backend):
            loss = case.run().output.sin().sum()
            first = torch.autograd.grad(loss, leaves, create_graph=True)
            seconds.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
    for actual, expected in zip(*seconds, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)


def test_second_derivative_of_some_arguments():
    case = make_case(NASBENCH201, nodes=2).map(lambda x: x.detach(), lambda x: x)
    case.weights.requires_grad_()
    seconds = []
    for backend in ("fused", "reference"):
        with use_backend(backend):
            loss = case.run().output.sin().sum()
            (grad,) = torch.autograd.grad(loss, case.weights, create_graph=True)
            seconds += torch.autograd.grad(grad.square().sum(), case.weights)
    torch.testing.assert_close(*seconds)


def poison(candidate: Candidate) -> Candidate:
    return candidate._replace(
        convolutions=tuple(w.detach() * float("inf") for w in candidate.convolutions)
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_an_inactive_op_leaks_nothing(backend, stride):
    case = make_case((*DARTS, "dense_3"), inputs=2, stride=stride, affine=True)
    # All ops that leave state 1, which is infinite, some others with infinite parameters and
    # weights.
    case.active = torch.ones(1, 18, dtype=torch.bool)
    case.active[0, [4, 6, 8]] = False
    case.active[0, 9:] = False
    runs = case.active[0].tolist()
    alone = replace(case, states=[case.states[0], torch.zeros_like(case.states[1])])
    expected = alone.run()
    poisoned = replace(
        case,
        states=[case.states[0], case.states[1] * float("inf")],
        weights=torch.where(case.active, case.weights, float("nan")),
        edges=[
            (
                source,
                node,
                [c if runs[9 * i + k] else poison(c) for k, c in enumerate(candidates)],
            )
            for i, (source, node, candidates) in enumerate(case.edges)
        ],
    ).map(lambda x: x.detach().requires_grad_(), lambda x: x)
    out = poisoned.run()
    assert torch.equal(out.output, expected.output)
    assert torch.equal(out.mean, expected.mean)
    assert torch.equal(out.var, expected.var)
    grads = torch.autograd.grad(out.output.sum(), poisoned.leaves, allow_unused=True)
    assert all(g is None or bool(g.isfinite().all()) for g in grads)
    assert bool((grads[1] == 0).all())
    assert bool((grads[2][~case.active] == 0).all())
    assert bool((grads[2][case.active] != 0).any())


def test_parameters_without_a_gradient(backend):
    # None where no group computes the op, a tensor where one does; both backends alike.
    case = make_case((*NASBENCH201, "dil_3"), groups=2, affine=True)
    case.active = torch.tensor([[1, 1, 0, 1, 1, 0], [1, 1, 0, 0, 0, 1]], dtype=torch.bool)
    for name in ("fused", "reference"):
        with use_backend(name):
            out = case.run().output
            grads = torch.autograd.grad(out.sum(), case.leaves, allow_unused=True)
        missing = {n for n, g in zip(case.named_leaves, grads, strict=True) if g is None}
        assert missing == {n for n in case.named_leaves if n.startswith("op 2 ")}
        assert len(missing) == 3


def test_one_op_of_each_edge_is_that_op(backend):
    case = make_case(NASBENCH201, nodes=3, multiplier=3)
    chosen = [3, 0, 4, 1, 2, 3]
    case.active = torch.zeros(1, 30, dtype=torch.bool)
    case.active[0, [5 * edge + k for edge, k in enumerate(chosen)]] = True
    alone = replace(
        case,
        weights=case.weights[:, case.active[0]],
        edges=[
            (source, node, [candidates[k]])
            for (source, node, candidates), k in zip(case.edges, chosen, strict=True)
        ],
        active=None,
    )
    assert torch.equal(case.run().output, alone.run().output)


def test_a_node_without_active_ops_is_zero(backend):
    case = make_case(NASBENCH201, nodes=3, multiplier=3)
    case.active = torch.ones(1, 30, dtype=torch.bool)
    case.active[0, 5:15] = False  # all into node 2
    out = case.run()
    assert bool((out.output[:, 6:12] == 0).all())
    with use_backend("reference"):
        torch.testing.assert_close(out.output, case.run().output, rtol=1e-10, atol=1e-10)
    case.active[:] = False
    out = case.run()
    assert bool((out.output == 0).all())
    assert bool((out.mean == 0).all())
    assert bool((out.var == 1).all())
    grads = torch.autograd.grad(out.output.sum(), case.leaves, allow_unused=True)
    assert all(bool((g == 0).all()) for g in grads[:2])
    assert all(g is None for g in grads[2:])


def test_a_multiplied_zero_weight_spreads_nan(backend):
    # Without the activity table a zero weight is an ordinary number, as in the originals that
    # multiply: 0 * inf is NaN. Only "none" adds nothing.
    case = make_case(("none", "identity"))
    case.states = [case.states[0] * float("inf")]
    case.weights = torch.zeros(2, dtype=torch.float64)
    assert bool(case.run().output.isnan().all())
    case.edges[0][2].pop()
    case.weights = case.weights[:1]
    assert bool((case.run().output == 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saving_changes_no_result(backend, dtype):
    case = make_case(inputs=2, nodes=3, multiplier=2, groups=2, masked=True, affine=True).to(dtype)
    arguments = op_arguments(case)
    kept, dropped = (_ops.mixed_cell(*arguments, save) for save in (True, False))
    assert kept[1].dim() == 1
    assert kept[1].numel() > 0
    assert dropped[1].shape == (0,)
    for index in (0, 2, 3):
        assert torch.equal(kept[index], dropped[index])


def test_nothing_is_saved_where_no_gradient_is_wanted(monkeypatch):
    seen = []
    inner = _ops.mixed_cell
    monkeypatch.setattr(_ops, "mixed_cell", lambda *a: seen.append(a[-1]) or inner(*a))
    case = make_case(NASBENCH201)
    case.run()
    with torch.no_grad():
        case.run()
    case.map(lambda x: x.detach(), lambda x: x).run()
    assert seen == [True, False, False]


def test_a_gradient_needs_what_was_saved():
    case = make_case(NASBENCH201)
    output, *_ = _ops.mixed_cell(*op_arguments(case), False)
    message = "mixed_cell: save must be True where a gradient is wanted, got False"
    with pytest.raises(RuntimeError, match=message):
        output.sum().backward()


def in_order(case: Case, wanted: set[str]) -> list[bool]:
    """`wanted`, as the mask of mixed_cell_backward has it."""
    groups = ("state ", "weights", " convolution ", " gamma ", " beta ")
    return [name in wanted for part in groups for name in case.named_leaves if part in name]


def test_only_wanted_gradients_are_computed():
    case = make_case(("identity", "dil_3", "dense_1", "max_pool"), inputs=2, affine=True)
    wanted = {"state 1", "weights", "op 1 separable convolution 1", "op 2 dense gamma 0"}
    leaves = case.named_leaves
    case = case.with_leaves([x.detach().requires_grad_(n in wanted) for n, x in leaves.items()])
    case.active = torch.ones(1, 8, dtype=torch.bool)
    case.active[0, 2] = False
    leaves = case.named_leaves
    with BackwardCalls() as calls:
        case.run().output.sum().backward()
    wanted.remove("op 2 dense gamma 0")
    assert [call[-1] for call in calls.seen] == [in_order(case, wanted)]
    assert {name for name, leaf in leaves.items() if leaf.grad is not None} == wanted


def test_a_gradient_of_some_computes_no_other():
    case = make_case(("identity", "dil_3", "max_pool"), affine=True)
    with BackwardCalls() as calls:
        found = torch.autograd.grad(case.run().output.square().sum(), case.weights)
    assert [call[-1] for call in calls.seen] == [in_order(case, {"weights"})]
    expected = torch.autograd.grad(case.run().output.square().sum(), case.leaves)
    position = list(case.named_leaves).index("weights")
    assert torch.equal(found[0], expected[position])


def test_gradients_share_no_elements():
    case = make_case(("dil_3", "sep_3", "dense_3"), affine=True)
    case.run().output.square().sum().backward()
    before = [leaf.grad.clone() for leaf in case.leaves]
    for i, leaf in enumerate(case.leaves):
        leaf.grad.mul_(i + 2)
    for i, (leaf, grad) in enumerate(zip(case.leaves, before, strict=True)):
        assert torch.equal(leaf.grad, grad * (i + 2))


def training(run: Callable[[Case], Tensor]) -> list[Tensor]:
    """What two steps do that clip, accumulate over two backwards and clear gradients in place."""
    case = make_case(("dil_3", "sep_3", "dense_3"), affine=True)
    leaves = case.leaves
    optimizer = torch.optim.SGD(leaves, lr=0.01, momentum=0.9)
    seen = []
    for step in range(2):
        optimizer.zero_grad(set_to_none=False)
        assert step == 0 or not any(leaf.grad.any() for leaf in leaves)
        for _ in range(2):
            run(case).square().sum().backward()
        norm = torch.nn.utils.clip_grad_norm_(leaves, 0.5)
        assert norm > 0.5
        optimizer.step()
        seen += [norm, *(x.clone() for leaf in leaves for x in (leaf.grad, leaf.detach()))]
        for leaf in leaves:
            leaf.grad.detach_()
    return seen


def test_gradients_can_be_accumulated_clipped_and_cleared_in_place():
    def plain(case: Case) -> Tensor:
        with use_backend("reference"):
            return case.run().output

    for ours, theirs in zip(training(lambda case: case.run().output), training(plain), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_what_a_gradient_needs_must_stay_as_it_was():
    case = make_case(("dil_3",))
    output = case.run().output
    with torch.no_grad():
        case.leaves[-1].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_forward_derivatives_are_refused():
    case = make_case(("dil_3", "identity"))
    with forward_ad.dual_level():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's own use of torch.jit
            case.weights = forward_ad.make_dual(case.weights, torch.ones_like(case.weights))
        with pytest.raises(RuntimeError, match="jvp is not implemented"):
            case.run()


@pytest.mark.parametrize("save", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_opcheck(stride, save):
    case = make_case(
        (*DARTS, "plain_max"), nodes=2, groups=2, stride=stride, affine=True, channels=4
    )
    case.active = torch.ones(2, 27, dtype=torch.bool)
    case.active[1, ::2] = False
    if not save:  # then autograd has no formula
        case = case.map(lambda x: x.detach(), lambda x: x)
    # The check left out compares every output, and the buffer is undefined where no map is written;
    # test_compiles_as_one_graph compares the others.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(_ops.mixed_cell, (*op_arguments(case), save), test_utils=checks)


@pytest.mark.parametrize("names", [("max_pool", "plain_max", "dense_1"), ("identity",)], ids=str)
def test_opcheck_of_the_backward(names):
    case = make_case(names, affine=True, channels=4)
    arguments = op_arguments(case)
    output, saved, mean, var = (x.detach() for x in _ops.mixed_cell(*arguments, True))
    states, weights, convolutions, gammas, betas, _, _, *settings, _, active, precision = arguments
    settings += [active, precision]
    count = len(states) + 1 + len(convolutions) + len(gammas) + len(betas)
    empty = [gamma.numel() == 0 for gamma in gammas]
    mask = [i % 5 != 4 for i in range(count - 2 * len(gammas))] + [not e for e in empty * 2]
    grad = torch.randn(output.shape, dtype=output.dtype)
    backward = (grad, saved, mean, var, states, weights, convolutions, gammas, betas, *settings)
    torch.library.opcheck(_ops.mixed_cell_backward, (*backward, mask))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(dynamic):
    case = make_case(NASBENCH201, nodes=2, affine=True, masked=True).to(torch.float32)
    leaves = [x for x in case.leaves if is_computed(case, x)]

    def step(states: list[Tensor], weights: Tensor) -> Tensor:
        return replace(case, states=states, weights=weights).run().output.relu().sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    expected = torch.autograd.grad(step(case.states, case.weights), leaves)
    actual = torch.autograd.grad(compiled(case.states, case.weights), leaves)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.testing.assert_close(
            compiled(case.states, case.weights), step(case.states, case.weights)
        )


def test_autocast_computes_in_single_precision():
    case = make_case(NASBENCH201, nodes=2, affine=True).to(torch.float32)
    low = [x.detach().bfloat16().requires_grad_() for x in case.states]
    single = replace(case, states=[x.float() for x in low])
    with torch.autocast("cpu", torch.bfloat16):
        out = replace(case, states=low).run()
    assert (out.output.dtype, out.mean.dtype) == (torch.bfloat16, torch.float32)
    # Without separable convolutions what is in bfloat16 is stored, not multiplied.
    with use_bf16_maps():
        assert torch.equal(out.output, single.run().output.bfloat16())
    out.output.sum().backward()
    assert low[0].grad.dtype == torch.bfloat16
    parameters = case.map(lambda x: x.detach().half(), lambda x: x)
    with torch.autocast("cpu", torch.bfloat16):
        assert parameters.run().output.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.float16):
        out = replace(case, states=low).run().output
        assert out.dtype == torch.float32
    assert torch.equal(out, single.run().output)


def test_autocast_compiles_as_one_graph():
    case = make_case(DARTS, channels=4).to(torch.float32)

    def step(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return replace(case, states=[x]).run().output

    x = case.states[0].detach().bfloat16().requires_grad_()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for function in (compiled, step):
        assert function(x).dtype == torch.bfloat16
    assert torch.equal(compiled(x), step(x))
    actual, expected = (torch.autograd.grad(f(x).sum(), x)[0] for f in (compiled, step))
    assert torch.equal(actual, expected)


def test_one_edge_is_a_mixed_op():
    case = make_case(stride=2, groups=2, masked=True)
    arguments = (case.states[0], case.weights, case.candidates)
    out = functional.mixed_op(*arguments, stride=2, groups=2, active=case.active)
    assert all(torch.equal(a, b) for a, b in zip(out, case.run(), strict=True))


def test_one_row_of_weights_and_activity_serves_all_groups():
    case = make_case(groups=2)
    row, active = case.weights[0], torch.arange(8) % 3 != 0
    shared = replace(case, weights=row, active=active).run()
    expanded = replace(case, weights=torch.stack([row, row]), active=active.expand(2, 8)).run()
    assert torch.equal(shared.output, expanded.output)


def test_reference_backend_is_the_reference():
    case = make_case()
    expected = reference.mixed_cell(*op_arguments(case), False)
    assert expected[1].shape == (0,)
    with use_backend("reference"):
        assert torch.equal(case.run().output, expected[0])


def test_an_operation_is_five_numbers():
    plan = reference.cell_ops([0, 2, 5, 3, 1, 1, 2, 2, 0, 0, 2, 3, 7, 0, 0, 0, 3, 0, 0, 0])
    assert [op.kind for op in plan] == [
        *("separable_twice", "max_pool", "factorized_reduce", "none")
    ]
    assert [op.convolutions for op in plan] == [range(4), range(4, 4), range(4, 6), range(6, 6)]
    assert [op.norms for op in plan] == [range(2), range(2, 3), range(3, 4), range(4, 4)]
    assert {KINDS[name][0] for name in KINDS} == set(reference.CELL_KINDS)
