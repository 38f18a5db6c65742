# SPDX-License-Identifier: Apache-2.0
"""accelerate on the supernets of each code base: everything stays what it was, but for the time."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from originals import (
    confopt,
    darts,
    darts_pt,
    drnas,
    nasbench201,
    naslib,
    pc_darts,
    robust_darts,
    sgas,
    smooth_darts,
)
from test_accelerate import calls, images  # noqa: F401
from torch import Tensor, nn

import darts_fast

STEPS = {"steps": 2, "multiplier": 2}


def small(kind: type[darts.Network], C: int = 2, **edge: object) -> darts.Network:
    return kind(C, 5, 3, **STEPS, **edge)


def projected() -> nn.Module:
    """Some edges decided, one removed."""
    net = small(darts_pt.SDartsNetworkProj)
    net.project_op(0, 4, "normal")
    net.project_op(3, 0, "reduce")
    net.project_edge([2], "normal")
    return net


def decided() -> nn.Module:
    net = small(sgas.Network)
    net.normal_selected_idxs = [-1, 4, 0, -1, 3]
    return net


CELLS = {f"cells.{i}": 40 for i in range(3)}
EDGES = {f"cells.{i}._ops.{edge}": 8 for i in range(3) for edge in range(5)}

# Builds the network; what is accelerated in it -> operations of its native call; rule of 0.
ORIGINALS: dict[str, tuple[Callable[[], nn.Module], dict[str, int], str]] = {
    "darts": (lambda: small(darts.Network), CELLS, "multiply"),
    "darts-pt": (lambda: small(darts_pt.Network), dict.fromkeys(CELLS, 35), "skip"),
    "darts-pt-proj": (projected, dict.fromkeys(CELLS, 35), "skip"),
    "pc-darts": (lambda: small(pc_darts.Network, 8), EDGES, "multiply"),
    "robust-darts": (lambda: small(robust_darts.Network), CELLS, "multiply"),
    "smooth-darts": (lambda: small(smooth_darts.Network), CELLS, "multiply"),
    "sgas": (lambda: small(sgas.Network), CELLS, "multiply"),
    "drnas": (lambda: small(drnas.Network), CELLS, "skip"),
    "drnas-partial": (lambda: small(drnas.Network, 8, k=4), EDGES, "skip"),
    "naslib": (lambda: naslib.Graph(3), {"edges.first": 5, "edges.second": 5}, "multiply"),
    "confopt": (lambda: confopt.Chain(4), {"choices.0": 8, "choices.1": 8}, "multiply"),
    "nasbench201": (
        lambda: nasbench201.TinyNetwork(2, 1, 3, 5),
        {f"cells.{i}": 15 for i in (0, 2, 4)},
        "multiply",
    ),
}

# Enough for the fast suite: one each with whole cells, partial channels, and other classes.
QUICK = ("darts-pt-proj", "drnas-partial", "naslib", "nasbench201")
LONG = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in ORIGINALS]


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return ORIGINALS[name][0]().double()


def batch(net: nn.Module, seed: int = 1) -> Tensor:
    first = next(part for part in net.modules() if isinstance(part, nn.Conv2d))
    return images(3, first.in_channels, 8, 8, seed=seed)


def alphas(net: nn.Module) -> list[Tensor]:
    """Architecture parameters, wherever the code base keeps them."""
    found = getattr(net, "arch_parameters", None)
    if isinstance(found, nn.Parameter):
        return [found]
    if found is not None:
        return list(found())
    return [net.alphas] if hasattr(net, "alphas") else [d.alpha for d in net.data.values()]


def state(net: nn.Module, seed: int = 1) -> dict[str, Tensor | None]:
    """Output, all gradients and all buffers of a run that is the same for the same seed."""
    torch.manual_seed(seed)
    x = batch(net).requires_grad_()
    out = net(x)
    (out * images(*out.shape, seed=5)).sum().backward()
    found: dict[str, Tensor | None] = {"output": out.detach(), "gradient of images": x.grad}
    for name, parameter in net.named_parameters():
        found[f"gradient of {name}"] = parameter.grad
    for i, alpha in enumerate(alphas(net)):
        found[f"gradient of alphas {i}"] = alpha.grad
    return {**found, **{name: buffer.clone() for name, buffer in net.named_buffers()}}


def assert_same(actual: nn.Module, expected: nn.Module) -> None:
    found, wanted = state(actual), state(expected)
    assert [*found] == [*wanted]
    for name, value in wanted.items():
        assert (found[name] is None) == (value is None), name
        if value is not None:
            # Alphas are in single precision.
            tolerance = 1e-6 if value.dtype == torch.float32 else 1e-8
            torch.testing.assert_close(
                found[name], value, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n} {m}"
            )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ORIGINALS)
def test_outputs_gradients_and_statistics(
    name: str,
    training: bool,
    calls: list[int],  # noqa: F811
) -> None:
    net, plain = build(name).train(training), build(name).train(training)
    keys = [*net.state_dict()]
    assert darts_fast.accelerate(net) is net
    _, fused, zero = ORIGINALS[name]
    assert darts_fast.accelerated(net) == dict.fromkeys(fused, zero)
    assert [*net.state_dict()] == keys
    calls.clear()
    assert_same(net, plain)
    assert calls == [*fused.values()]


@pytest.mark.parametrize("name", LONG)
def test_twenty_steps_of_optimizers_that_were_built_before(name: str) -> None:
    nets = [build(name), build(name)]
    optimizers = [
        [
            torch.optim.SGD(net.parameters(), 0.02, momentum=0.9, weight_decay=3e-4),
            torch.optim.Adam(alphas(net), 3e-3, betas=(0.5, 0.999), weight_decay=1e-3),
        ]
        for net in nets
    ]
    darts_fast.accelerate(nets[0])
    for net, both in zip(nets, optimizers, strict=True):
        for step in range(20):
            torch.manual_seed(step)
            for optimizer in both:
                net.zero_grad()
                optimizer.zero_grad()
                net(batch(net, seed=step)).square().mean().backward()
                optimizer.step()
    for (key, mine), other in zip(
        nets[0].state_dict().items(), nets[1].state_dict().values(), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4, msg=key)
    for mine, other in zip(alphas(nets[0]), alphas(nets[1]), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LONG)
def test_another_dtype_by_to(name: str, calls: list[int]) -> None:  # noqa: F811
    net, plain = build(name), build(name)
    parameters = [*darts_fast.accelerate(net).parameters()]
    for model in (net, plain):
        model.to(torch.float32)
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    calls.clear()
    outputs = []
    for model in (net, plain):
        torch.manual_seed(1)
        outputs.append(model(batch(model).float()))
    assert calls == [*ORIGINALS[name][1].values()]
    assert outputs[0].dtype == torch.float32
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", LONG)
def test_copies_saved_states_and_restore(name: str) -> None:
    net, plain = build(name), build(name)
    before = [{**vars(module)} for module in net.modules()]
    darts_fast.accelerate(net)
    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert darts_fast.accelerated(copied) == darts_fast.accelerated(net)
        with torch.no_grad():
            for parameter in copied.parameters():
                parameter.mul_(1.5)
        own = darts_fast.restore(copy.deepcopy(copied))
        assert_same(copied, own)
        # What the accelerated network saves, the original loads, and the reverse.
        plain.load_state_dict(copied.state_dict())
        net.load_state_dict(plain.state_dict())
    darts_fast.restore(net)
    assert [{**vars(module)} for module in net.modules()] == before
    assert_same(net, plain)


@pytest.mark.parametrize("zero", ["darts", "darts-pt"])
def test_masks_as_the_removal_loop_of_darts_pt_makes_them(
    zero: str,
    calls: list[int],  # noqa: F811
) -> None:
    """weights_dict with an entry of 0, with a row of 0 and with one-hot rows, in train mode."""
    net, plain = build(zero), build(zero)
    darts_fast.accelerate(net)
    calls.clear()
    width = net.alphas_normal.shape[1]
    for mask in ("operation", "edge", "one-hot"):
        table = images(5, width, seed=3).softmax(-1)
        if mask == "operation":
            table[1, 3] = 0.0
        elif mask == "edge":
            table[1] = 0.0
        else:
            table = torch.eye(width, dtype=torch.float64)[torch.arange(5) + width - 5]
        outputs = []
        for each in (net, plain):
            with torch.no_grad():
                if zero == "darts-pt":
                    outputs.append(each(batch(each), {"normal": table, "reduce": table}))
                else:
                    s = each.stem(batch(each))
                    outputs.append(each.cells[0](s, s, table))
        torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)
    for (key, mine), other in zip(net.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9, msg=key)
    assert calls == [5 * width] * (9 if zero == "darts-pt" else 3)


def test_a_node_without_edges_fails_as_the_original_does() -> None:
    net = darts_fast.accelerate(build("darts-pt"))
    table = images(5, 7, seed=3).softmax(-1)
    table[:2] = 0.0
    for each in (net, darts_fast.restore(copy.deepcopy(net))):
        with pytest.raises(TypeError):
            each(batch(net), {"normal": table, "reduce": table})


def test_perturbed_alphas_of_smooth_darts() -> None:
    net, plain = build("smooth-darts"), build("smooth-darts")
    darts_fast.accelerate(net)
    for each in (net, plain):
        torch.manual_seed(3)
        each.softmax_arch_parameters()
        each.perturb(0.03)
    assert_same(net, plain)
    for each in (net, plain):
        each.restore_arch_parameters()
    assert_same(net, plain)


def test_decided_edges_of_sgas_run_alone(calls: list[int]) -> None:  # noqa: F811
    net, plain = decided().double(), decided().double()
    plain.load_state_dict(net.state_dict())
    for mine, other in zip(alphas(plain), alphas(net), strict=True):
        mine.data.copy_(other)
    darts_fast.accelerate(net)
    calls.clear()
    assert_same(net, plain)
    assert calls == [8, 8, 40, 40]


def test_operations_that_drnas_widens_are_noticed(calls: list[int]) -> None:  # noqa: F811
    net, plain = build("drnas-partial"), build("drnas-partial")
    darts_fast.accelerate(net)
    for each in (net, plain):
        for part in each.modules():
            if isinstance(part, drnas.MixedOp):
                part.wider(2)
    calls.clear()
    assert_same(net, plain)
    assert not calls
    darts_fast.accelerate(net)
    calls.clear()
    assert_same(net, plain)
    assert len(calls) == 15


def test_half_of_the_channels(calls: list[int]) -> None:  # noqa: F811
    edge = pc_darts.ImageNetMixedOp(8, 2).double()
    plain = copy.deepcopy(edge)
    darts_fast.accelerate(edge)
    calls.clear()
    x, weights = images(2, 8, 8, 6), images(8, seed=2)
    torch.testing.assert_close(edge(x, weights), plain(x, weights), rtol=1e-9, atol=1e-9)
    assert calls == [8]


@pytest.mark.parametrize(
    ("build_edge", "width"),
    [
        (lambda: darts.MixedOp(4, 1, ("noise", "max_pool_3x3", "sep_conv_3x3_skip", "none")), 2),
        (lambda: nasbench201.NAS201SearchCell(4, 4, 1, 3, ("dropout", *nasbench201.NAMES)), 5),
    ],
    ids=["mixed operation", "nasbench201"],
)
def test_unknown_operations_run_as_modules_and_the_rest_is_fused(
    build_edge: Callable[[], nn.Module],
    width: int,
    calls: list[int],  # noqa: F811
) -> None:
    edge = build_edge().double()
    plain = copy.deepcopy(edge)
    darts_fast.accelerate(edge)
    shape = (width + 2,) if width == 2 else (3, width + 1)
    for training in (True, False):
        outputs = []
        for each in (edge.train(training), plain.train(training)):
            calls.clear()
            torch.manual_seed(4)
            x = images(2, 4, 8, 6).requires_grad_()
            w = images(*shape, seed=2).requires_grad_()
            out = each(x, w)
            (out * images(*out.shape, seed=5)).sum().backward()
            outputs.append([out, x.grad, w.grad, *(p.grad for p in each.parameters())])
        for mine, other in zip(*outputs, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-9)
    calls.clear()
    edge(x, w)
    assert calls == [width] * (1 if width == 2 else 3)


def test_a_gate_in_naslib_takes_its_second_argument(calls: list[int]) -> None:  # noqa: F811
    torch.manual_seed(0)
    net = naslib.Graph(3, gate=True).double()
    plain = copy.deepcopy(net)
    darts_fast.accelerate(net)
    calls.clear()
    assert_same(net, plain)
    assert calls == [5, 5]
