# SPDX-License-Identifier: Apache-2.0
"""The DARTS operations and supernet computed from a state_dict alone, with torch.nn.functional.

An oracle for the modules: it knows the key names of the original code base and the formulas of the
operations, and uses no module. Batch norms use batch statistics.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

State = Mapping[str, Tensor]


def batch_norm(state: State, key: str, x: Tensor) -> Tensor:
    mean = x.mean((0, 2, 3), keepdim=True)
    var = (x - mean).square().mean((0, 2, 3), keepdim=True)
    y = (x - mean) / (var + 1e-5).sqrt()
    if f"{key}.weight" in state:
        y = y * state[f"{key}.weight"].view(-1, 1, 1) + state[f"{key}.bias"].view(-1, 1, 1)
    return y


def pool(x: Tensor, stride: int, kind: str) -> Tensor:
    """3x3 pool as a loop over the nine offsets; cells outside the map do not take part."""
    h, w = x.shape[2:]
    outside = float("-inf") if kind == "max" else 0.0
    padded = functional.pad(x, (1, 1, 1, 1), value=outside)
    valid = functional.pad(torch.ones_like(x), (1, 1, 1, 1))
    windows, counts = [], []
    for dy in range(3):
        for dx in range(3):
            rows, columns = slice(dy, dy + h, stride), slice(dx, dx + w, stride)
            windows.append(padded[:, :, rows, columns])
            counts.append(valid[:, :, rows, columns])
    stacked = torch.stack(windows)
    return stacked.amax(0) if kind == "max" else stacked.sum(0) / torch.stack(counts).sum(0)


def separable(
    state: State, prefix: str, first: int, x: Tensor, size: int, stride: int, dilation: int
) -> Tensor:
    """ReLU, depthwise, pointwise, BN; the depthwise convolution is the child number `first`."""
    padding = dilation * (size // 2)
    depthwise, pointwise = (state[f"{prefix}op.{first + i}.weight"] for i in range(2))
    assert depthwise.shape[1:] == (1, size, size)
    y = functional.conv2d(x.relu(), depthwise, None, stride, padding, dilation, groups=x.shape[1])
    return batch_norm(state, f"{prefix}op.{first + 2}", functional.conv2d(y, pointwise))


def factorized_reduce(state: State, prefix: str, x: Tensor) -> Tensor:
    x = x.relu()
    even = functional.conv2d(x[:, :, ::2, ::2], state[f"{prefix}conv_1.weight"])
    odd = functional.conv2d(x[:, :, 1::2, 1::2], state[f"{prefix}conv_2.weight"])
    return batch_norm(state, f"{prefix}bn", torch.cat([even, odd], 1))


def operation(state: State, prefix: str, name: str, x: Tensor, stride: int) -> Tensor:
    """One candidate, without the batch norm that the supernet adds to a pool."""
    if name.endswith("_skip"):
        return x + operation(state, prefix, name.removesuffix("_skip"), x, stride)
    if name == "none":
        return torch.zeros_like(x[:, :, ::stride, ::stride])
    if name == "skip_connect":
        return x if stride == 1 else factorized_reduce(state, prefix, x)
    if name.endswith("pool_3x3"):
        return pool(x, stride, name[:3])
    if name == "conv_7x1_1x7":
        row, column = state[f"{prefix}1.weight"], state[f"{prefix}2.weight"]
        assert row.shape[2:] == (1, 7)
        assert column.shape[2:] == (7, 1)
        y = functional.conv2d(functional.pad(x.relu(), (3, 3, 0, 0)), row)[:, :, :, ::stride]
        y = functional.conv2d(functional.pad(y, (0, 0, 3, 3)), column)[:, :, ::stride]
        return batch_norm(state, f"{prefix}3", y)
    size = int(name[-1])
    if name.startswith("dil_conv"):
        return separable(state, prefix, 1, x, size, stride, 2)
    assert name.startswith("sep_conv")
    y = separable(state, prefix, 1, x, size, stride, 1)
    return separable(state, prefix, 5, y, size, 1, 1)


def mixed(
    state: State, prefix: str, names: tuple[str, ...], x: Tensor, stride: int, weights: Tensor
) -> Tensor:
    """Weighted sum over the candidates; those with weight 0 are not computed."""
    total = torch.zeros_like(x[:, :, ::stride, ::stride])
    for op, name in enumerate(names):
        if weights[op] != 0:
            y = operation(state, f"{prefix}_ops.{op}.", name, x, stride)
            if "pool" in name:
                y = batch_norm(state, f"{prefix}_ops.{op}.1", y)
            total = total + weights[op] * y
    return total


def preprocess(state: State, prefix: str, x: Tensor) -> Tensor:
    if f"{prefix}conv_1.weight" in state:
        return factorized_reduce(state, prefix, x)
    return batch_norm(
        state, f"{prefix}op.2", functional.conv2d(x.relu(), state[f"{prefix}op.1.weight"])
    )


def cell(
    state: State,
    prefix: str,
    s0: Tensor,
    s1: Tensor,
    primitives: tuple[tuple[str, ...], ...],
    weights: Tensor,
    reduction: bool,
) -> Tensor:
    """A cell of four nodes that concatenates all of them."""
    states = [
        preprocess(state, f"{prefix}preprocess0.", s0),
        preprocess(state, f"{prefix}preprocess1.", s1),
    ]
    edge = 0
    for node in range(2, 6):
        total = torch.zeros(())
        for source in range(node):
            stride = 2 if reduction and source < 2 else 1
            total = total + mixed(
                state,
                f"{prefix}_ops.{edge}.",
                primitives[edge],
                states[source],
                stride,
                weights[edge],
            )
            edge += 1
        states.append(total)
    return torch.cat(states[2:], 1)


def network(
    state: State,
    x: Tensor,
    layers: int,
    primitives: Mapping[str, tuple[tuple[str, ...], ...]],
    weights: Mapping[str, Tensor],
) -> Tensor:
    """Logits of the supernet; reductions are the cells layers // 3 and 2 * layers // 3."""
    stem = functional.conv2d(x, state["stem.0.weight"], padding=1)
    s0 = s1 = batch_norm(state, "stem.1", stem)
    for i in range(layers):
        kind = "reduce" if i in (layers // 3, 2 * layers // 3) else "normal"
        out = cell(state, f"cells.{i}.", s0, s1, primitives[kind], weights[kind], kind == "reduce")
        s0, s1 = s1, out
    return s1.mean((2, 3)) @ state["classifier.weight"].T + state["classifier.bias"]
