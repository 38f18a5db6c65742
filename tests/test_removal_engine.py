# SPDX-License-Identifier: Apache-2.0
"""`MaskedEvaluation` against the loop of full forwards."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from removal_cases import (
    SPACES,
    Batches,
    Sums,
    Table,
    assert_same_scores,
    mixed_tables,
    naive,
    small_batches,
    small_net,
    without,
)
from torch import Tensor, nn

from darts_fast.backend import use_backend, use_bf16_maps
from darts_fast.nn import Network, Supernet
from darts_fast.seeding import rng_state
from darts_fast.selection import score_tables
from darts_fast.selection.engine import MaskedEvaluation, cells, split, together
from darts_fast.selection.engine.states import State, Variants
from darts_fast.selection.engine.walk import Walk


def evaluated(net: Supernet, batches: Batches, tables: Sequence[Table], **options: object) -> Sums:
    evaluate = MaskedEvaluation(net, tables, **options)  # type: ignore[arg-type]
    scores = [evaluate(images, labels) for images, labels in batches]
    return Sums(
        torch.stack([score.loss for score in scores], dim=1),
        torch.stack([score.correct for score in scores], dim=1),
    )


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images of every full forward of a supernet."""
    found: list[int] = []
    forward = Supernet.forward

    def counted(self: Supernet, x: Tensor, weights: object = None) -> Tensor:
        found.append(len(x))
        return forward(self, x, weights)  # type: ignore[arg-type]

    monkeypatch.setattr(Supernet, "forward", counted)
    return found


@pytest.fixture
def chunks_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes every chunk hold so many tables."""

    def set_size(size: int) -> None:
        monkeypatch.setattr(together, "groups_that_fit", lambda *_: size)

    return set_size


@pytest.mark.parametrize("bn", ["batch", "running"])
@pytest.mark.parametrize("space", SPACES)
def test_equals_the_loop_of_forwards(space: str, bn: str) -> None:
    net, batches = small_net(space), small_batches()
    tables = mixed_tables(net)
    found = evaluated(net, batches, tables, bn=bn)
    assert_same_scores(found, naive(net, batches, tables, bn=bn), batches)
    assert found.loss.std(dim=0).min() > 1e-2  # the tables differ


def test_maps_in_bfloat16_and_autocast() -> None:
    net, batches = small_net("s5"), small_batches()
    tables = mixed_tables(net)[:6]
    plain = evaluated(net, batches, tables)
    with use_bf16_maps():  # of what is saved, and here nothing is
        assert torch.equal(evaluated(net, batches, tables).loss, plain.loss)
    with torch.autocast("cpu", torch.bfloat16):
        found = evaluated(net, batches, tables)
        assert torch.equal(found.loss, naive(net, batches, tables).loss)
    assert not torch.equal(found.loss, plain.loss)


@pytest.mark.parametrize("space", ["s3", "s5", "nasbench201"])
def test_decided_edges_and_nodes(space: str) -> None:
    net, batches = small_net(space, projected=True), small_batches()
    tables = mixed_tables(net)
    assert_same_scores(evaluated(net, batches, tables), naive(net, batches, tables), batches)


@pytest.mark.parametrize("space", ["s5", "nasbench201"])
def test_kernels_of_every_capability(backend: str, space: str) -> None:
    net, batches = small_net(space, layers=3), small_batches((4,))
    tables = mixed_tables(net)[::4]
    assert_same_scores(evaluated(net, batches, tables), naive(net, batches, tables), batches)


def test_double_precision() -> None:
    net = small_net("s2", layers=3).double()
    batches = [(images.double(), labels) for images, labels in small_batches((4,))]
    tables = [{name: rows.double() for name, rows in table.items()} for table in mixed_tables(net)]
    found, expected = evaluated(net, batches, tables), naive(net, batches, tables)
    torch.testing.assert_close(found.loss, expected.loss, rtol=0, atol=1e-11)


@pytest.mark.parametrize("zero", ["skip", "multiply"])
def test_both_rules_for_a_weight_of_zero(zero: str) -> None:
    torch.manual_seed(0)
    net = Network(4, 3, 3, space="s5", zero=zero)
    batches = small_batches((4,))
    tables = mixed_tables(net)
    assert_same_scores(evaluated(net, batches, tables), naive(net, batches, tables), batches)


@pytest.mark.parametrize(("layers", "steps", "multiplier"), [(1, 4, 4), (4, 3, 2), (2, 2, 1)])
def test_other_sizes_of_network_and_cell(layers: int, steps: int, multiplier: int) -> None:
    torch.manual_seed(0)
    net = Network(4, 3, layers, steps=steps, multiplier=multiplier, space="s5")
    batches = small_batches((4,))
    tables = [{}] + [
        without(net, (cell_type, edge, op))
        for cell_type in ("normal", "reduce")
        for edge in range(net.space.num_edges)
        for op in (1, 3)
    ]
    assert_same_scores(evaluated(net, batches, tables), naive(net, batches, tables), batches)


# Chunks


@pytest.mark.parametrize("space", ["s4", "s5", "nasbench201"])
def test_every_chunk_size_gives_the_same_bits(space: str, chunks_of: Callable[[int], None]) -> None:
    net, batches = small_net(space, layers=3), small_batches()
    tables = mixed_tables(net)
    whole = evaluated(net, batches, tables)
    for size in (1, 3, 5, len(tables) - 1):
        chunks_of(size)
        found = evaluated(net, batches, tables)
        assert torch.equal(found.loss, whole.loss)
        assert torch.equal(found.correct, whole.correct)


def test_a_score_does_not_depend_on_the_other_tables() -> None:
    net, batches = small_net("s5", layers=3), small_batches()
    tables = mixed_tables(net)
    whole = evaluated(net, batches, tables)
    for row in (0, 3, 9, 20, len(tables) - 2, len(tables) - 1):
        alone = evaluated(net, batches, [tables[row]])
        assert torch.equal(alone.loss[0], whole.loss[row])


def test_a_score_does_not_depend_on_the_threads() -> None:
    net, batches = small_net("s5", layers=3), small_batches()
    tables = mixed_tables(net)[1:8:2]
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(evaluated(net, batches, tables).loss)
    assert torch.equal(*found)


def test_rows_choose_tables_in_any_order() -> None:
    net, (images, labels) = small_net("s4"), small_batches((4,))[0]
    tables = mixed_tables(net)
    whole = MaskedEvaluation(net, tables)(images, labels)
    rows = [7, 0, 7, len(tables) - 1]
    some = MaskedEvaluation(net, tables)(images, labels, rows)
    assert some.loss.tolist() == whole.loss[rows].tolist()
    assert some.correct.tolist() == whole.correct[rows].tolist()
    assert some.correct.dtype == torch.int64


def test_equal_tables_and_rows_that_are_left_out() -> None:
    net, (images, labels) = small_net("s5", layers=3), small_batches((4,))[0]
    own = {name: rows.detach().clone() for name, rows in net.edge_weights().items()}
    calls = []
    evaluate = MaskedEvaluation(net, [{}, own, {}], between=lambda: calls.append(1))
    assert len(set(evaluate(images, labels).loss.tolist())) == 1
    assert len(calls) == 1


# What is shared


@pytest.fixture
def terms(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[int]]]:
    """Of every call of the native op that the engine makes: groups and operations."""
    found: list[tuple[int, list[int]]] = []
    run = cells.run_terms

    def recorded(
        operations: object, chosen: object, inputs: object, weights: Tensor, **rest: object
    ) -> Tensor:
        found.append((len(weights), sorted(term.op for term in chosen)))  # type: ignore[attr-defined]
        return run(operations, chosen, inputs, weights, **rest)  # type: ignore[arg-type]

    for module in (cells, split):
        monkeypatch.setattr(module, "run_terms", recorded)
    return found


def test_edges_from_shared_states_are_computed_once(terms: list[tuple[int, list[int]]]) -> None:
    net, (images, labels) = small_net("s5", layers=1), small_batches((4,))[0]
    # One reduction cell; edge 6 leads from state 1 to node 4, which edge 13 leaves.
    tables = [without(net, ("reduce", 6, op)) for op in range(7)]
    MaskedEvaluation(net, tables)(images, labels)
    (one, shared), (groups, rest) = terms
    assert (one, groups) == (1, 7)
    # Maps enter as they are: summands of nodes 4 and 5, nodes 2 and 3, the operations of edge 6.
    assert rest == [-1] * (4 + 7) + [*range(91, 98)]
    assert shared == [k for k in range(98) if k < 91]


def test_operations_that_every_table_removes_are_not_computed(
    terms: list[tuple[int, list[int]]],
) -> None:
    net, (images, labels) = small_net("s5", layers=1), small_batches((4,))[0]
    MaskedEvaluation(net, [without(net, ("reduce", 6, None))])(images, labels)
    computed = [k for _, call in terms for k in call]
    assert not set(computed) & set(range(42, 49))


def test_many_changed_edges_are_computed_per_table(terms: list[tuple[int, list[int]]]) -> None:
    net, batches = small_net("s5", layers=1), small_batches((4,))
    tables = [without(net, *(("reduce", edge, op) for edge in (0, 2, 5))) for op in range(2)]
    found = evaluated(net, batches, tables)
    (_, shared), (groups, changed), _ = terms
    assert groups == 2
    assert changed == [k for edge in (0, 2, 5) for k in range(7 * edge, 7 * edge + 7)]
    assert not set(shared) & set(changed)
    assert_same_scores(found, naive(net, batches, tables), batches)


def test_a_cell_that_nothing_enters() -> None:
    torch.manual_seed(0)
    net = Network(4, 3, 1, steps=1, multiplier=1, space="s5")
    batches = small_batches((4,))
    tables = [{}, without(net, ("reduce", 0, None), ("reduce", 1, None))]
    assert_same_scores(evaluated(net, batches, tables), naive(net, batches, tables), batches)


def test_cells_before_the_first_change_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    net, (images, labels) = small_net("s5", layers=6), small_batches((4,))[0]
    widths: list[int] = []
    advance = Walk.advance

    def recorded(
        self: Walk, index: int, states: tuple[State, ...], variants: Variants
    ) -> tuple[State, ...]:
        found = advance(self, index, states, variants)
        widths.append((index, len(found[-1].maps) // 4))  # type: ignore[arg-type]
        return found

    monkeypatch.setattr(Walk, "advance", recorded)
    tables = [without(net, ("reduce", edge, op)) for edge in (3, 8) for op in range(7)]
    MaskedEvaluation(net, tables)(images, labels)
    # Two cells once; two where each edge goes on its own; the others with all 14 tables.
    assert widths == [(0, 1), (1, 1), *2 * [(2, 7), (3, 7)], (4, 14), (5, 14)]


@pytest.mark.parametrize("space", ["s3", "nasbench201"])
def test_removing_none_changes_nothing(space: str, terms: list[tuple[int, list[int]]]) -> None:
    net, (images, labels) = small_net(space, layers=3), small_batches((4,))[0]
    cell_type = net.space.cell_types[-1]
    tables = [{}, *(without(net, (cell_type, edge, 0)) for edge in range(4))]
    assert len(set(MaskedEvaluation(net, tables)(images, labels).loss.tolist())) == 1
    assert [groups for groups, _ in terms] == [1, 1, 1]  # the network as it is, once
    loss = naive(net, [(images, labels)], tables).loss
    torch.testing.assert_close(loss, loss[:1].expand_as(loss), rtol=0, atol=0)


def test_a_none_that_somebody_replaced_is_removed() -> None:
    net, batches = small_net("s3", layers=3), small_batches((4,))
    net.cells[0]._ops[1]._ops[0] = net.cells[0]._ops[1]._ops[2]
    tables = [{}, *(without(net, ("normal", edge, 0)) for edge in range(3))]
    found = evaluated(net, batches, tables)
    assert_same_scores(found, naive(net, batches, tables), batches)
    assert found.loss[2] != found.loss[0]


def test_an_operation_of_weight_zero_carries_no_change() -> None:
    net, batches = small_net("s5", layers=3), small_batches((4,))
    for edge in range(5, 9):
        net.projection.project_op("normal", edge, 0)
    net.projection.project_edges("normal", 3, [2, 3])  # node 3 does not read node 2 any more
    tables = [without(net, ("normal", 0, op)) for op in range(7)]
    assert_same_scores(evaluated(net, batches, tables), naive(net, batches, tables), batches)


# A removed operation that is broken


@pytest.mark.parametrize("space", ["s5", "s2"])
def test_a_removed_operation_cannot_poison_its_removal(space: str) -> None:
    net, batches = small_net(space, layers=3), small_batches((4,))
    edge, op = 3, net.space.primitives["normal"][3].index("sep_conv_3x3")
    with torch.no_grad():
        for cell in net.cells:
            if not cell.reduction:
                cell._ops[edge]._ops[op].op[1].weight.fill_(float("inf"))
    tables = [{}] + [without(net, ("normal", e, o)) for e in (0, 3, 13) for o in range(2)]
    tables.append(without(net, ("normal", edge, op)))
    found, expected = evaluated(net, batches, tables), naive(net, batches, tables)
    finite = found.loss.isfinite().squeeze(1)
    assert finite.tolist() == expected.loss.isfinite().squeeze(1).tolist()
    assert finite[-1]
    assert not finite[0]
    torch.testing.assert_close(found.loss[finite], expected.loss[finite], rtol=0, atol=4e-5)


# What falls back to the loop


def test_running_statistics_move_as_forwards_in_order_move_them() -> None:
    net, batches = small_net("nasbench201"), small_batches()
    tables = mixed_tables(net)[:9]
    trial = small_net("nasbench201").train()
    with torch.no_grad():
        expected = [[trial(images, weights=t) for t in tables] for images, _ in batches]
    scores = score_tables(net, batches, tables, bn="batch_updating")
    for name, buffer in net.named_buffers():
        assert torch.equal(buffer, trial.get_buffer(name)), name
    found = torch.stack([logits.argmax(1) for logits in expected[0]]) == batches[0][1]
    assert scores.batch_correct[:, 0].tolist() == found.sum(1).tolist()


@pytest.mark.parametrize("case", ["hook", "drop_path", "reference", "features", "module"])
def test_networks_that_are_not_walked(case: str, forwards: list[int]) -> None:
    class Own(Network):
        def _features(self, x: Tensor, weights: object) -> Tensor:
            return 2 * super()._features(x, weights)  # type: ignore[arg-type]

    torch.manual_seed(0)
    net = (Own if case == "features" else Network)(4, 3, 3, space="s2")
    seen: list[int] = []
    if case == "hook":
        net.cells[1].register_forward_hook(lambda *_: seen.append(1))
    if case == "drop_path":
        net.drop_path_prob = 0.5
    if case == "module":
        net.cells[2].forward = lambda *states: type(net.cells[2]).forward(net.cells[2], *states)
    batches, tables = small_batches((4,)), mixed_tables(net)[:8]
    with use_backend("reference" if case == "reference" else "fused"):
        found = evaluated(net, batches, tables)
        assert forwards == 8 * [4]
        assert len(seen) == (8 if case == "hook" else 0)
        expected = naive(net, batches, tables) if case != "module" else found
    assert torch.equal(found.loss, expected.loss)


def test_what_changes_between_calls_is_seen(forwards: list[int]) -> None:
    net, ((images, labels),) = small_net("s2", layers=3), small_batches((4,))
    del forwards[:]
    evaluate = MaskedEvaluation(net, mixed_tables(net)[:4])
    first = evaluate(images, labels)
    assert forwards == []
    hook = net.cells[1].register_forward_hook(lambda *_: None)
    evaluate(images, labels)
    assert forwards == 4 * [4]
    hook.remove()
    net.cells[0] = copy.deepcopy(net.cells[0])
    again = evaluate(images, labels)
    assert len(forwards) == 4
    assert torch.equal(again.loss, first.loss)


def test_the_engine_makes_no_full_forward(forwards: list[int]) -> None:
    net, batches = small_net("s2", layers=3), small_batches((4,))
    del forwards[:]
    evaluated(net, batches, mixed_tables(net)[:8])
    assert forwards == []


def test_an_operation_of_the_users_own(forwards: list[int]) -> None:
    net, batches = small_net("s5", layers=4), small_batches((4,))
    net.cells[3]._ops[5]._ops[1] = nn.Sequential(nn.Tanh(), nn.BatchNorm2d(16, affine=False))
    del forwards[:]
    tables = mixed_tables(net)
    found = evaluated(net, batches, tables)
    assert forwards == []
    assert_same_scores(found, naive(net, batches, tables), batches)


# What is left behind


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, RuntimeError])
def test_the_network_is_put_back(error: type[BaseException] | None) -> None:
    net, (images, labels) = small_net("s4"), small_batches((4,))[0]
    net.eval()
    net.cells[1].train()
    flags = [module.training for module in net.modules()]
    state = {name: value.clone() for name, value in net.full_state_dict()["state_dict"].items()}
    random = rng_state()["torch"]

    def between() -> None:
        if error is not None:
            raise error

    evaluate = MaskedEvaluation(net, mixed_tables(net)[:4], between=between)
    if error is None:
        evaluate(images, labels)
    else:
        with pytest.raises(error):
            evaluate(images, labels)
    assert flags == [module.training for module in net.modules()]
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert torch.equal(random, rng_state()["torch"])
    assert not any(module._forward_pre_hooks for module in net.modules())
    assert all(parameter.grad is None for _, parameter in net.named_parameters())


def test_arguments_are_checked() -> None:
    net, (images, labels) = small_net("s2", layers=3), small_batches((4,))[0]
    with pytest.raises(ValueError, match="bn must be one of batch, batch_updating, running"):
        MaskedEvaluation(net, [{}], bn="x")
    with pytest.raises(ValueError, match="tables must not be empty, got 0 tables"):
        MaskedEvaluation(net, [])
    for wrong in ("2 apples", "-1MiB", 0):
        with pytest.raises(ValueError, match=f"max_memory must be bytes .* got {wrong!r}"):
            MaskedEvaluation(net, [{}], max_memory=wrong)
    with pytest.raises(ValueError, match=r"rows must be in 0\.\.0, got \[1\]"):
        MaskedEvaluation(net, [{}])(images, labels, [1])
    with pytest.raises(ValueError, match=r"max_memory must hold one table, .* got 1\.0 MiB"):
        MaskedEvaluation(net, [{}], max_memory="1MiB")(images, labels)
    with pytest.raises(
        ValueError, match=r"one entry per op and the shape \[14, 2\], got \[14, 3\]"
    ):
        MaskedEvaluation(net, [{"normal": torch.zeros(14, 3)}])
    with pytest.raises(ValueError, match="weights must be for normal, reduce, got 'cell'"):
        MaskedEvaluation(net, [{"cell": torch.zeros(14, 2)}])
    with pytest.raises(ValueError, match="multiples of 4, got 6x6"):
        MaskedEvaluation(net, [{}])(images[:, :, :6, :6], labels)
