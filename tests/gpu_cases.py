# SPDX-License-Identifier: Apache-2.0
"""Calls of the ops that have CUDA kernels, for the tests and benchmarks that need a device.

A new op joins by a case in `CASES`; everything else is written once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import cell_cases
import test_conv_blocks
import test_node_sum
import torch
from torch import Tensor

from darts_fast.backend import use_backend
from darts_fast.functional import Norm, relu_conv_norm

Leaves = dict[str, Tensor]


@dataclass(frozen=True)
class GpuCase:
    """One call of one op: its tensors with a gradient, and the call for given ones."""

    name: str
    ops: tuple[str, ...]
    """The native ops that must have a CUDA kernel."""
    leaves: Leaves
    """In float64 on the CPU."""
    call: Callable[[Leaves], Tensor]

    def on(self, device: str, dtype: torch.dtype) -> Leaves:
        """The leaves there; maps channels_last, as the kernels have them."""
        moved = {}
        for name, leaf in self.leaves.items():
            is_map = leaf.dim() == 4
            memory_format = torch.channels_last if is_map else torch.contiguous_format
            there = leaf.detach().to(device, dtype, memory_format=memory_format)
            moved[name] = there.requires_grad_()
        return moved

    def gradient_like(self, output: Tensor) -> Tensor:
        """What arrives at the output: the same numbers on every device and in every precision."""
        generator = torch.Generator().manual_seed(99)
        drawn = torch.randn(output.shape, dtype=torch.float64, generator=generator)
        return drawn.to(output.device, output.dtype).contiguous(memory_format=torch.channels_last)

    def results(self, leaves: Leaves, backend: str) -> dict[str, Tensor]:
        """The output and the gradient of every leaf."""
        with use_backend(backend):
            output = self.call(leaves)
            grads = torch.autograd.grad(
                output,
                list(leaves.values()),
                self.gradient_like(output),
                allow_unused=True,
                materialize_grads=True,
            )
        named = {f"gradient of {name}": g for name, g in zip(leaves, grads, strict=True)}
        return {"output": output.detach(), **named}

    def missing_kernels(self) -> list[str]:
        """The ops of the case that this build has no CUDA kernel for."""
        return [op for op in self.ops if not has_cuda_kernel(op)]


def has_cuda_kernel(op: str) -> bool:
    """Whether darts_fast::`op` is registered for CUDA."""
    dump = torch._C._dispatch_dump(f"darts_fast::{op}")
    return any(line.startswith("CUDA: registered at") for line in dump.splitlines())


def _node_sum(name: str, **arguments: object) -> GpuCase:
    case = test_node_sum.make_case(**arguments)
    leaves = {f"map {k}": y for k, y in enumerate(case.maps)}
    leaves |= {"weights": case.weights, "gamma": case.gamma, "beta": case.beta}

    def call(given: Leaves) -> Tensor:
        maps = [given[f"map {k}"] for k in range(len(case.maps))]
        like = maps[0]
        moved = replace(
            case,
            maps=maps,
            weights=given["weights"],
            gamma=given["gamma"],
            beta=given["beta"],
            running_mean=case.running_mean.to(like.device, like.dtype),
            running_var=case.running_var.to(like.device, like.dtype),
        )
        return moved.run().node

    return GpuCase(name, ("node_sum", "node_sum_backward"), leaves, call)


def _mixed_cell(name: str, **arguments: object) -> GpuCase:
    case = cell_cases.make_case(**arguments)

    def call(given: Leaves) -> Tensor:
        return case.with_leaves(list(given.values())).run().output

    return GpuCase(name, ("mixed_cell", "mixed_cell_backward"), case.named_leaves, call)


def _relu_conv_norm(name: str, kernel: int, stride: int) -> GpuCase:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    leaves = {"x": draw(4, 12, 9, 8), "weight": draw(20, 12, kernel, kernel)}
    leaves |= {"gamma": draw(20), "beta": draw(20)}

    def call(given: Leaves) -> Tensor:
        norm = Norm("batch", 1e-5, given["gamma"], given["beta"])
        return relu_conv_norm(given["x"], [given["weight"]], norm, stride=stride).output

    ops = ("relu_conv_norm", "relu_conv_norm_backward")
    return GpuCase(name, ops, leaves, call)


def _conv_blocks(name: str, **arguments: object) -> GpuCase:
    case = test_conv_blocks.make_case(**arguments)
    lists = {"input": case.inputs, "depthwise": case.depthwise, "pointwise": case.pointwise}
    named = {f"{part} {i}": x for part, values in lists.items() for i, x in enumerate(values)}
    named |= {"gamma": case.gamma, "beta": case.beta}
    leaves = {key: x for key, x in named.items() if x is not None}

    def call(given: Leaves) -> Tensor:
        def moved(part: str) -> list[Tensor | None]:
            return [given.get(f"{part} {i}") for i in range(len(lists[part]))]

        there = {part: moved(part) for part in ("depthwise", "pointwise")}
        norm = {part: given.get(part) for part in ("gamma", "beta")}
        out = replace(case, inputs=moved("input"), **there, **norm).run()
        return torch.cat(out.outputs, 1)

    return GpuCase(name, ("conv_blocks", "conv_blocks_backward"), leaves, call)


CASES = [
    _node_sum("node_sum", norms=test_node_sum.MIXED, channels=16, size=(17, 15)),
    _node_sum("node_sum of 10 channels", norms=test_node_sum.MIXED, channels=10),
    _node_sum("node_sum in groups", groups=7, norms=test_node_sum.MIXED, masked=True),
    _node_sum("node_sum of a cell's last node", terms=35, batch=2, size=(32, 32)),
    _mixed_cell("an edge of DARTS", channels=16, size=(16, 16), batch=4),
    _mixed_cell("an edge of DARTS, stride 2", channels=36, stride=2, size=(8, 8)),
    _mixed_cell("an edge of NAS-Bench-201", names=cell_cases.NASBENCH201, channels=10),
    _mixed_cell("a cell in groups", inputs=2, nodes=2, multiplier=2, groups=3, masked=True),
    _conv_blocks("conv_blocks", size=(16, 15)),
    _conv_blocks("conv_blocks behind norms", norm="batch", affine=True, channels=10),
    _conv_blocks("conv_blocks in groups, stride 2", groups=3, masked=True, stride=2),
    _relu_conv_norm("relu_conv_norm 1x1", 1, 1),
    _relu_conv_norm("relu_conv_norm 3x3, stride 2", 3, 2),
]

# For benchmarks: a node, an edge and a cell of a DARTS network, batch 64; made when asked for.
LARGE: dict[str, Callable[[], GpuCase]] = {
    "node_sum": lambda: _node_sum("node_sum", terms=35, batch=64, size=(32, 32)),
    "edge": lambda: _mixed_cell("edge", channels=16, size=(32, 32), batch=64),
    "cell": lambda: _mixed_cell(
        "cell", inputs=2, nodes=4, multiplier=4, channels=16, size=(32, 32), batch=64
    ),
}
