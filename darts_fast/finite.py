# SPDX-License-Identifier: Apache-2.0
"""Where a value that is not finite comes from: cell, edge and operation.

Nothing here runs before a loss or a gradient has turned out not to be finite.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from darts_fast.nn import Supernet

__all__ = ["UNSEEN", "clip_gradients", "first_non_finite", "non_finite_weights", "place"]

_PLACE = re.compile(
    r"cells\.(?P<cell>\d+)(\.(_ops|edges|layers)\.(?P<edge>[^.]+)((\._ops)?\.(?P<op>\d+))?)?"
)


UNSEEN = "the loss itself; every output was finite when repeated"


def first_non_finite(net: nn.Module, forward: Callable[[], object]) -> str:
    """In words, the first NaN or infinite value of a forward pass.

    Weights are looked at first, then the images, then input and output of every module in the order
    of the computation, each module run as the module it is; a sum between modules that overflows is
    the input of the next one. Running statistics, hooks and the random state of the CPU are
    afterwards as they were. The repeated pass draws other random numbers than the one that failed
    (drop-path, noise operations).

    forward: runs `net` once more on the same images; its gradient is not needed.
    """
    already = non_finite_weights(net)
    if already is not None:
        return f"{already}, before the step"
    found: list[str] = []

    def watch(what: str) -> Callable[..., None]:
        def look(module: nn.Module, *values: Any) -> None:
            if not found and not all(map(_finite, _tensors(values[-1]))):
                found.append(what)

        return look

    buffers = [(buffer, buffer.clone()) for buffer in net.buffers()]
    hooks = []
    for name, module in net.named_modules():
        where = place(net, name)
        before = watch(f"the input of {where}" if module is not net else "the images")
        hooks.append(module.register_forward_pre_hook(before))
        hooks.append(module.register_forward_hook(watch(f"the output of {where}")))
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            forward()
    finally:
        for hook in hooks:
            hook.remove()
        for buffer, value in buffers:
            buffer.copy_(value)
    return found[0] if found else UNSEEN


def non_finite_weights(net: nn.Module) -> str | None:
    """In words, the first weight or architecture weight that is not finite, or None."""
    return _listed(net, net.named_parameters(), first=True)


def clip_gradients(net: nn.Module, max_norm: float) -> tuple[float, str | None]:
    """Clip the gradients of `net.parameters()` to a global L2 norm, as `clip_grad_norm_` does.

    Returns the norm before, and in words the parameter nearest to the output whose gradient is not
    finite, or None. Where there is one nothing is clipped. The norm of finite gradients may
    overflow, which makes them 0.
    """
    weights = list(net.parameters())
    norm = nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None])
    if not norm.isfinite():
        named = [(name, p.grad) for name, p in net.named_parameters() if p.grad is not None]
        where = _listed(net, named, first=False)
        if where is not None:
            return float(norm), f"the gradient of {where}"
    nn.utils.clip_grads_with_norm_(weights, max_norm, norm)
    return float(norm), None


def place(net: nn.Module, name: str) -> str:
    """The module or parameter of that name in the field's words.

    ``cell 2 (reduce), edge 7, sep_conv_3x3: cells.2._ops.7._ops.2.op.1``; edges are counted as in
    the space, in a derived network as in its genotype. What is in no cell is its name.
    """
    found = _PLACE.match(name)
    if found is None:
        return name or "the network"
    cell = cast(nn.ModuleList, net.get_submodule("cells"))[int(found["cell"])]
    words = [f"cell {found['cell']}"]
    if isinstance(getattr(cell, "reduction", None), bool):
        words[0] += " (reduce)" if cell.reduction else " (normal)"
    names = getattr(cell, "primitives", None)
    if found["edge"] is not None and names is not None:
        key = found["edge"]
        edge = int(key) if key.isdigit() else list(cast(nn.ModuleDict, cell.edges)).index(key)
        words.append(f"edge {edge}")
        if isinstance(names[edge], str):
            words.append(names[edge])
        elif found["op"] is not None:
            words.append(names[edge][int(found["op"])])
    return f"{', '.join(words)}: {name}"


def _listed(net: nn.Module, tensors: Iterable[tuple[str, Tensor]], *, first: bool) -> str | None:
    bad = [(name, tensor) for name, tensor in tensors if not _finite(tensor)]
    if not bad:
        return None
    name, tensor = bad[0 if first else -1]
    others = f" and {len(bad) - 1} other tensors" if len(bad) > 1 else ""
    return (_alpha(net, name, tensor) or place(net, name)) + others


def _alpha(net: nn.Module, name: str, tensor: Tensor) -> str | None:
    """The edge and the operation of the first such value of an architecture parameter."""
    if not isinstance(net, Supernet):
        return None
    for cell_type, alpha in net.alphas().items():
        if alpha is net.get_parameter(name):
            edge, op = (~tensor.isfinite()).nonzero()[0].tolist()
            words = net.space.primitives[cell_type][edge][op]
            return f"{cell_type} cells, edge {edge}, {words}: {name}[{edge}, {op}]"
    return None


def _tensors(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    return [value for value in values if isinstance(value, Tensor)]


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())
