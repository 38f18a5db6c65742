# SPDX-License-Identifier: Apache-2.0
"""Architecture parameters as nn.Parameters that `parameters()` and `state_dict()` leave out."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from darts_fast.nn import Supernet, build_supernet

SPACES = ("s3", "nasbench201")
ALPHA_NAMES = {
    "s3": ["alphas_normal", "alphas_reduce"],
    "nasbench201": ["_arch_parameters"],
}


def build(space: str, seed: int = 0) -> Supernet:
    torch.manual_seed(seed)
    layers = 1 if space == "nasbench201" else 3
    return build_supernet(space, channels=2, num_classes=3, layers=layers)


def batch(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 3, 8, 8, generator=generator).to(dtype), torch.arange(6) % 3


def saved_and_loaded(state: object) -> dict[str, object]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    loaded: dict[str, object] = torch.load(buffer, weights_only=True)
    return loaded


@pytest.mark.parametrize("space", SPACES)
def test_initial_values(space: str) -> None:
    net = build(space)
    spec = net.space
    assert [alpha.shape for alpha in net.arch_parameters()] == [
        (spec.num_edges, spec.num_ops) for _ in spec.cell_types
    ]
    values = torch.cat([alpha.flatten() for alpha in net.arch_parameters()])
    assert 0.0007 < values.std().item() < 0.0014
    assert values.abs().max().item() < 0.005
    assert all(alpha.requires_grad for alpha in net.arch_parameters())


@pytest.mark.parametrize("space", SPACES)
def test_who_sees_the_alphas(space: str) -> None:
    net = build(space)
    alphas = net.arch_parameters()
    named = dict(net.named_parameters())
    for name, alpha in zip(ALPHA_NAMES[space], alphas, strict=True):
        assert named.pop(name) is alpha
        assert getattr(net, name) is alpha
    weights = list(net.parameters())
    assert [*map(id, weights)] == [*map(id, named.values())]
    assert not {*map(id, weights)} & {*map(id, alphas)}
    assert not [key for key in net.state_dict() if "alpha" in key or "arch" in key]
    assert {*named} <= {*net.state_dict()}


def test_the_original_s_list_of_alphas() -> None:
    net = build("darts")
    assert [*map(id, net._arch_parameters)] == [id(net.alphas_normal), id(net.alphas_reduce)]


@pytest.mark.parametrize("space", SPACES)
def test_weight_utilities_leave_the_alphas_alone(space: str) -> None:
    net = build(space)
    x, labels = batch()
    net._loss(x, labels).backward()
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())
    assert all(alpha.grad is not None for alpha in net.arch_parameters())
    net.requires_grad_(False)
    assert not any(p.requires_grad for p in net.parameters())
    grads = torch.autograd.grad(net._loss(x, labels), net.arch_parameters())
    assert all(grad.any() for grad in grads)


@pytest.mark.parametrize("space", SPACES)
def test_double_after_the_optimizers_are_built(space: str) -> None:
    net = build(space)
    sgd = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    adam = torch.optim.Adam(net.arch_parameters(), 0.1)
    net.double()
    assert all(alpha.dtype == torch.float64 for alpha in net.arch_parameters())
    before = [p.clone() for p in net.arch_parameters()]
    weight = net.classifier.weight.clone()
    x, labels = batch(dtype=torch.float64)
    net._loss(x, labels).backward()
    sgd.step()
    assert all(map(torch.equal, before, net.arch_parameters())), "SGD must not move alphas"
    assert not torch.equal(weight, net.classifier.weight)
    weight = net.classifier.weight.clone()
    adam.step()
    assert torch.equal(weight, net.classifier.weight), "Adam must not move weights"
    for old, alpha in zip(before, net.arch_parameters(), strict=True):
        assert not torch.equal(old, alpha)
        assert alpha.dtype == torch.float64
    assert net.edge_weights()[net.space.cell_types[0]].dtype == torch.float64


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("how", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_are_whole_and_independent(space: str, how: object) -> None:
    net = build(space)
    cell_type = net.space.cell_types[0]
    net.projection.project_op(cell_type, 2, 1)
    other: Supernet = how(net)  # type: ignore[operator]
    x, _ = batch()
    assert torch.equal(other.eval()(x), net.eval()(x))
    with torch.no_grad():
        for alpha in other.arch_parameters():
            alpha.add_(torch.randn_like(alpha))
    other.projection.project_op(cell_type, 0, 0)
    assert 0 in net.projection.undecided_edges(cell_type)
    assert not torch.equal(other(x), net(x))
    ids = {*map(id, other.arch_parameters())}
    assert ids <= {id(p) for _, p in other.named_parameters()}
    assert not ids & {*map(id, other.parameters())}
    assert not ids & {*map(id, net.arch_parameters())}


@pytest.mark.parametrize("space", SPACES)
def test_strict_loading_without_and_with_alphas(space: str) -> None:
    net, other = build(space, 0), build(space, 1)
    own = [alpha.clone() for alpha in other.arch_parameters()]
    state = net.state_dict()
    other.load_state_dict(state)
    assert all(map(torch.equal, own, other.arch_parameters()))
    state.update(zip(ALPHA_NAMES[space], (a.detach() for a in net.arch_parameters()), strict=True))
    other.load_state_dict(state)
    assert all(map(torch.equal, net.arch_parameters(), other.arch_parameters()))
    with pytest.raises(RuntimeError, match=r'Missing key.*"classifier.bias"'):
        other.load_state_dict({k: v for k, v in state.items() if k != "classifier.bias"})
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"surplus"'):
        other.load_state_dict({**state, "surplus": torch.zeros(1)})
    wrapped, target = nn.Sequential(net), nn.Sequential(build(space, 2))
    assert not [key for key in wrapped.state_dict() if "alpha" in key or "arch" in key]
    target.load_state_dict(wrapped.state_dict())


@pytest.mark.parametrize("space", SPACES)
def test_full_state_round_trip(space: str) -> None:
    net, other = build(space, 0), build(space, 1)
    cell_type = net.space.cell_types[-1]
    net.projection.project_op(cell_type, 1, 0)
    other.projection.project_op(cell_type, 0, 1)
    x, labels = batch()
    net(x)
    other.load_full_state_dict(saved_and_loaded(net.full_state_dict()))
    assert all(map(torch.equal, net.arch_parameters(), other.arch_parameters()))
    assert other.projection.state_dict() == net.projection.state_dict()
    assert other.genotype() == net.genotype()
    for one in (net, other):
        one._loss(x, labels).backward()
    for (name, a), (_, b) in zip(net.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(a, b), name
        assert (a.grad is None) == (b.grad is None), name
        assert a.grad is None or torch.equal(a.grad, b.grad), name
    for (name, a), (_, b) in zip(net.named_buffers(), other.named_buffers(), strict=True):
        assert torch.equal(a, b), name


def test_a_full_state_that_does_not_fit_changes_nothing() -> None:
    net = build("s5", 1)
    before = copy.deepcopy(net.full_state_dict())
    good = build("s5", 0).full_state_dict()
    with pytest.raises(ValueError, match="Network: state must belong to space 's5', got 'darts'"):
        net.load_full_state_dict(build("darts").full_state_dict())
    with pytest.raises(ValueError, match=r"must have space, state_dict, .* got space, alphas"):
        net.load_full_state_dict({"space": "s5", "alphas": good["alphas"]})
    short = {**good, "alphas": {**good["alphas"], "reduce": torch.zeros(5, 7)}}
    with pytest.raises(ValueError, match=r"reduce alphas of shape \[14, 7\], got \[5, 7\]"):
        net.load_full_state_dict(short)
    with pytest.raises(ValueError, match=r"normal alphas of shape \[14, 7\], got None"):
        net.load_full_state_dict({**good, "alphas": {}})
    bad = {"space": "s5", "ops": {"normal": {0: 9}}, "edges": {}}
    with pytest.raises(ValueError, match="op must be 0 to 6, got 9"):
        net.load_full_state_dict({**good, "projection": bad})
    after = net.full_state_dict()
    assert after["projection"] == before["projection"]
    for part in ("alphas", "state_dict"):
        for key, value in before[part].items():
            assert torch.equal(after[part][key], value), key


def distributed_step(rank: int, folder: str) -> None:
    """One alpha and one weight step under DDP; leaves gradients and parameters in the folder."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    net = build("s2", seed=rank)  # DDP must broadcast the weights and alphas of rank 0
    ddp = nn.parallel.DistributedDataParallel(net)
    sgd = torch.optim.SGD(net.parameters(), 0.1)
    adam = torch.optim.Adam(net.arch_parameters(), 0.1)
    x, labels = batch(rank)
    nn.functional.cross_entropy(ddp(x), labels).backward()
    grads = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    adam.step()
    sgd.step()
    torch.save({"grads": grads, "params": dict(net.named_parameters())}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_distributed_step_averages_all_gradients(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=distributed_step, args=(rank, str(tmp_path)), daemon=True)
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    # Meanwhile: the two gradients that must be averaged, without DDP.
    single = []
    for rank in range(2):
        net = build("s2", seed=0)
        net._loss(*batch(rank)).backward()
        single.append({name: p.grad for name, p in net.named_parameters()})
    for process in processes:
        process.join(timeout=120)
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert {"alphas_normal", "alphas_reduce", "classifier.bias"} <= {*results[0]["grads"]}
    for result in results:
        assert {*result["grads"]} == {*single[0]}
        for name, grad in result["grads"].items():
            mean = (single[0][name] + single[1][name]) / 2
            torch.testing.assert_close(grad, mean, rtol=1e-4, atol=1e-6, msg=name)
    assert not torch.allclose(single[0]["alphas_normal"], single[1]["alphas_normal"])
    start = dict(build("s2", seed=0).named_parameters())
    for name, value in results[0]["params"].items():
        assert torch.equal(value, results[1]["params"][name]), name
    for name in ("alphas_normal", "alphas_reduce", "classifier.weight"):
        assert not torch.equal(results[0]["params"][name], start[name])
