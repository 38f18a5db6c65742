# SPDX-License-Identifier: Apache-2.0
"""Calls of mixed_cell for the tests: random cells, their leaves, results of both backends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from closeness import assert_close
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from darts_fast import functional, reference
from darts_fast.backend import use_backend
from darts_fast.functional import Candidate, Norm

# Name -> kind, kernel, dilation. "skip" is the identity, or a factorized reduce at stride 2; plain
# pools have no norm.
KINDS = {
    "none": ("none", 0, 1),
    "identity": ("identity", 0, 1),
    "max_pool": ("max_pool", 0, 1),
    "avg_pool": ("avg_pool", 0, 1),
    "plain_max": ("max_pool", 0, 1),
    "plain_avg": ("avg_pool", 0, 1),
    "one_3": ("separable", 3, 1),
    "one_5": ("separable", 5, 1),
    "one_7": ("separable", 7, 1),
    "dil_3": ("separable", 3, 2),
    "dil_5": ("separable", 5, 2),
    "sep_3": ("separable_twice", 3, 1),
    "sep_5": ("separable_twice", 5, 1),
    "sep_7": ("separable_twice", 7, 1),
    "dense_1": ("dense", 1, 1),
    "dense_3": ("dense", 3, 1),
    "reduce": ("factorized_reduce", 0, 1),
}

# The ops of an edge in each space, in the order of the originals.
DARTS = ("none", "max_pool", "avg_pool", "skip", "sep_3", "sep_5", "dil_3", "dil_5")
S1 = ("skip", "dil_5")
S2 = ("skip", "sep_3")
S3 = ("none", "skip", "sep_3")
NASBENCH201 = ("none", "skip", "dense_1", "dense_3", "plain_avg")
WITHOUT_REDUCE = tuple(name for name in DARTS if name != "skip")


@dataclass
class Case:
    """Arguments of one call; `leaves` are those with a gradient."""

    states: list[Tensor]
    weights: Tensor
    edges: list[tuple[int, int, list[Candidate]]]
    nodes: int
    multiplier: int
    stride: int
    groups: int
    active: Tensor | None

    @property
    def candidates(self) -> list[Candidate]:
        return [candidate for _, _, candidates in self.edges for candidate in candidates]

    def map(self, leaf: Callable[[Tensor], Tensor], fixed: Callable[[Tensor], Tensor]) -> Case:
        """The case with every differentiable tensor and every other floating one replaced."""

        def optional(change: Callable[[Tensor], Tensor], x: Tensor | None) -> Tensor | None:
            return None if x is None else change(x)

        def norm(n: Norm) -> Norm:
            return n._replace(
                gamma=optional(leaf, n.gamma),
                beta=optional(leaf, n.beta),
                running_mean=optional(fixed, n.running_mean),
                running_var=optional(fixed, n.running_var),
            )

        states, weights = [leaf(x) for x in self.states], leaf(self.weights)
        edges = [
            (
                source,
                node,
                [
                    c._replace(
                        convolutions=tuple(leaf(w) for w in c.convolutions),
                        norms=tuple(norm(n) for n in c.norms),
                    )
                    for c in candidates
                ],
            )
            for source, node, candidates in self.edges
        ]
        return replace(self, states=states, weights=weights, edges=edges)

    def to(self, dtype: torch.dtype) -> Case:
        return self.map(
            lambda x: x.detach().to(dtype).requires_grad_(), lambda x: x.detach().to(dtype)
        )

    @property
    def named_leaves(self) -> dict[str, Tensor]:
        named = {f"state {i}": x for i, x in enumerate(self.states)}
        named["weights"] = self.weights
        for k, candidate in enumerate(self.candidates):
            for i, weight in enumerate(candidate.convolutions):
                named[f"op {k} {candidate.kind} convolution {i}"] = weight
            for i, norm in enumerate(candidate.norms):
                for name in ("gamma", "beta"):
                    if getattr(norm, name) is not None:
                        named[f"op {k} {candidate.kind} {name} {i}"] = getattr(norm, name)
        return named

    @property
    def leaves(self) -> list[Tensor]:
        return list(self.named_leaves.values())

    def with_leaves(self, leaves: Sequence[Tensor]) -> Case:
        by_old = {id(old): new for old, new in zip(self.leaves, leaves, strict=True)}
        return self.map(lambda x: by_old[id(x)], lambda x: x)

    def run(self) -> functional.MixedCell:
        return functional.mixed_cell(
            self.states,
            self.weights,
            self.edges,
            nodes=self.nodes,
            multiplier=self.multiplier,
            stride=self.stride,
            groups=self.groups,
            active=self.active,
        )

    def results(self, backend: str) -> dict[str, Tensor]:
        """Every output, and the gradient of every leaf for a random gradient of the output.

        "alone" are those of a call that keeps nothing for a backward, which goes another way.
        """
        with use_backend(backend):
            out = alone = self.run()
            if backend == "fused":
                with torch.no_grad():
                    alone = self.run()
            generator = torch.Generator().manual_seed(99)
            grad = torch.randn(out.output.shape, dtype=torch.float64, generator=generator)
            named = self.named_leaves
            grads = torch.autograd.grad(
                *(out.output, list(named.values()), grad.to(out.output.dtype)),
                allow_unused=True,
                materialize_grads=True,
            )
        gradients = {f"gradient of {n}": g for n, g in zip(named, grads, strict=True)}
        outputs = {
            f"{name}{how}": value
            for how, call in (("", out), (" alone", alone))
            for name, value in zip(call._fields, call, strict=True)
        }
        return {**outputs, **gradients}


def make_case(
    names: Sequence[str] | Sequence[Sequence[str]] = DARTS,
    *,
    inputs: int = 1,
    nodes: int = 1,
    multiplier: int = 1,
    edges: Sequence[tuple[int, int]] | None = None,
    batch: int = 2,
    channels: int = 6,
    size: tuple[int, int] = (6, 4),
    stride: int = 1,
    norm: str = "batch",
    affine: bool = False,
    groups: int = 1,
    masked: bool = False,
    offset: float = 0.2,
    seed: int = 0,
) -> Case:
    """A random cell in float64.

    Args:
        names: ops of every edge, or of each edge its own.
        edges: (source, node), default one from every earlier state to every node.
        masked: with a table of activity in which about a third of the ops is inactive.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    def make_norm(eps: float) -> Norm:
        return Norm(
            norm,
            eps,
            draw(channels) if affine else None,
            draw(channels) if affine else None,
            draw(channels) if norm == "running" else None,
            draw(channels).abs() + 0.5 if norm == "running" else None,
        )

    def make_candidate(name: str, step: int) -> Candidate:
        if name == "skip":
            name = "identity" if step == 1 else "reduce"
        kind, kernel, dilation = KINDS[name]
        block = [
            draw(channels, 1, kernel, kernel) / max(kernel, 1),
            draw(channels, channels, 1, 1) / channels**0.5,
        ]
        convolutions = {
            "separable": block,
            "separable_twice": [*block, draw(*block[0].shape) / max(kernel, 1), block[1].flip(0)],
            "dense": [draw(channels, channels, kernel, kernel) / (channels**0.5 * max(kernel, 1))],
            "factorized_reduce": [draw(channels // 2, channels, 1, 1) for _ in range(2)],
        }.get(kind, [])
        if kind in ("none", "identity"):
            norms = []
        elif name in ("plain_max", "plain_avg"):
            norms = [Norm("none")]
        else:
            norms = [make_norm(1e-5), make_norm(1e-2)][: 2 if kind == "separable_twice" else 1]
        return Candidate(kind, tuple(convolutions), tuple(norms), dilation)

    if edges is None:
        edges = [(s, node) for node in range(inputs, inputs + nodes) for s in range(node)]
    per_edge = [names] * len(edges) if isinstance(names[0], str) else names
    listed = [
        (s, node, [make_candidate(name, stride if s < inputs else 1) for name in own])
        for (s, node), own in zip(edges, per_edge, strict=True)
    ]
    terms = sum(len(own) for own in per_edge)
    return Case(
        states=[draw(groups * batch, channels, *size) + offset for _ in range(inputs)],
        weights=draw(groups, terms),
        edges=listed,
        nodes=nodes,
        multiplier=multiplier,
        stride=stride,
        groups=groups,
        active=draw(groups, terms) > -0.4 if masked else None,
    ).to(torch.float64)


@cache
def _expected(
    dtype: torch.dtype, arguments: tuple[tuple[str, object], ...]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    # One and the same for every CPU capability: the slow half of a comparison, made once.
    rounded = make_case(**dict(arguments)).to(dtype)
    eager, truth = rounded.results("reference"), rounded.to(torch.float64).results("reference")
    return tuple({name: x.detach() for name, x in half.items()} for half in (eager, truth))


def assert_matches_reference(dtype: torch.dtype = torch.float32, **arguments: object) -> None:
    """Compares all that `make_case(**arguments)` computes: outputs and every gradient.

    In float64, where nothing is nearer to the truth, each within 1e-10 of its largest value. In
    float32 under the closeness policy, the gradients of all convolutions, scales and shifts
    together: of some hundred small tensors there is always one for which eager was lucky.
    """
    eager, truth = _expected(dtype, tuple(arguments.items()))
    actual = make_case(**arguments).to(dtype).results("fused")
    assert actual.keys() == truth.keys()
    if dtype == torch.float64:
        for name, value in actual.items():
            assert_same(name, value, truth[name])
        return
    actual, eager, truth = (by_role(results) for results in (actual, eager, truth))
    for name, value in actual.items():
        gradient = name.startswith("gradient")
        assert_close(name, value, eager[name], truth[name], gradient=gradient)


def by_role(results: dict[str, Tensor]) -> dict[str, Tensor]:
    """Results with the gradients of all states, convolutions, scales and shifts joined."""
    parts: dict[str, list[Tensor]] = {}
    for name, value in results.items():
        roles = ("state", "convolution", "gamma", "beta")
        role = next((f"gradient of every {r}" for r in roles if f" {r} " in name), name)
        parts.setdefault(role, []).append(value.flatten())
    return {role: torch.cat(values) for role, values in parts.items()}


def whole_numbers(case: Case) -> Case:
    """A case of running norms in float32, of 1, 0 and -1 (no weight of 0), whose norms do nothing.

    The pointwise convolutions of chains move channels only, so that their maps are small too.
    """
    generator = torch.Generator().manual_seed(1)

    def draw(x: Tensor) -> Tensor:
        return torch.randint(-1, 2, x.shape, generator=generator).float().requires_grad_()

    def signs(*shape: int) -> Tensor:
        return 2.0 * torch.randint(0, 2, shape, generator=generator) - 1

    def moved(x: Tensor) -> Tensor:
        order = torch.randperm(x.shape[0], generator=generator)
        return (torch.eye(x.shape[0])[order] * signs(len(x), 1)).view(x.shape).requires_grad_()

    def changed(candidate: Candidate) -> Candidate:
        convolutions = [draw(x) for x in candidate.convolutions]
        if candidate.kind == "separable_twice":
            convolutions[1::2] = [moved(x) for x in convolutions[1::2]]
        norms = []
        for norm in candidate.norms:
            if norm.running_mean is not None:
                zero = torch.zeros(norm.running_mean.shape)
                norm = norm._replace(eps=0.0, running_mean=zero, running_var=zero + 1)
            norms.append(norm)
        return candidate._replace(convolutions=tuple(convolutions), norms=tuple(norms))

    return replace(
        case,
        states=[draw(x) for x in case.states],
        weights=signs(*case.weights.shape).requires_grad_(),
        edges=[(source, node, [changed(c) for c in own]) for source, node, own in case.edges],
    )


class BackwardCalls(TorchDispatchMode):
    """The arguments of every mixed_cell_backward, in `seen`; lists as lists."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[object]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.darts_fast.mixed_cell_backward.default:
            self.seen.append([list(x) if isinstance(x, (list, tuple)) else x for x in args])
        return func(*args, **(kwargs or {}))


def op_arguments(case: Case) -> tuple:
    """What the native op is given, but for `save`; the last is the precision."""
    seen = []
    inner = reference.mixed_cell
    with pytest.MonkeyPatch.context() as patch, use_backend("reference"):
        patch.setattr(reference, "mixed_cell", lambda *a: seen.append(a[:-1]) or inner(*a))
        case.run()
    return seen[0]


def assert_same(name: str, actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    """Fails unless the two differ by at most `tolerance` of the largest expected value."""
    scale = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(
        *(actual, expected),
        rtol=0.0,
        atol=tolerance * (1 + scale),
        msg=lambda message: f"{name}: {message}",
    )
