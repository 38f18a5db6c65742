# SPDX-License-Identifier: Apache-2.0
"""compat.nasbench201.projection: decisions, schedule and look-up, scored by plain modules."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from compat_cases import batch, with_args
from plain_nasbench201 import Plain
from test_compat_nasbench201 import build
from torch import Tensor, nn

from darts_fast.compat.nasbench201 import Architect, TinyNetworkDartsProj
from darts_fast.compat.nasbench201.projection import pt_project

CRITERION = nn.CrossEntropyLoss()


class Scores:
    """`infer` of a script. Masked passes are those of plain modules with the network's weights."""

    def __init__(self) -> None:
        self.masked: list[tuple[Tensor, float]] = []

    def __call__(
        self,
        queue: Any,
        model: TinyNetworkDartsProj,
        criterion: nn.Module,
        log: bool = True,
        eval: bool = True,
        weights: Tensor | None = None,
    ) -> tuple[float, float]:
        assert criterion is CRITERION
        if weights is None:
            return 0.0, 0.0
        assert not eval
        plain = Plain(4, 5).double().train()
        plain.load_state_dict(model.state_dict())
        images, labels = next(iter(queue))
        with torch.no_grad():
            logits = plain(images, weights)
        loss = criterion(logits, labels).item()
        accuracy = 100 * (logits.argmax(1) == labels).double().mean().item()
        self.masked.append((weights, loss))
        return accuracy, loss


def select(scores: Scores, fast: bool = True, proj_intv: int = 2, query: Any = None) -> Any:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    args = with_args(
        proj_intv=proj_intv, proj_crit="loss", fast=fast, report_freq=1, learning_rate=0.1
    )
    net = build()
    assert isinstance(net, TinyNetworkDartsProj)
    architect = Architect(net, args)
    train, valid = [batch(0)], [batch(1)]
    pt_project(train, valid, net, architect, CRITERION, net.optimizer, 0, args, scores, query)
    return net


def decisions(scores: Scores) -> Iterator[tuple[int, int]]:
    """(edge, operation) by the plain losses: of five masks each, the edge is the one masked."""
    for start in range(0, len(scores.masked), 5):
        masks = scores.masked[start : start + 5]
        zeros = torch.stack([weights == 0 for weights, _ in masks])
        edges = [
            edge for edge in range(6) if torch.equal(zeros[:, edge], torch.eye(5, dtype=torch.bool))
        ]
        assert len(edges) == 1
        yield edges[0], max(range(5), key=lambda op: masks[op][1])


def test_every_edge_gets_the_operation_that_is_missed_most() -> None:
    scores = Scores()
    net = select(scores)
    found = dict(decisions(scores))
    assert sorted(found) == list(range(6))
    for edge, op in found.items():
        assert net.proj_weights[edge].argmax().item() == op
    assert not net.candidate_flags.any()
    # One-hot rows of edges decided before stand in the masks of later ones.
    assert (scores.masked[-1][0] == 1).sum() == 5


def test_interval_one_leaves_an_edge_open_as_published() -> None:
    net = select(Scores(), proj_intv=1)
    assert net.candidate_flags.sum() == 1


def test_the_benchmark_is_asked_for_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    module: Any = ModuleType("nas_201_api")
    module.NASBench201API = lambda path: SimpleNamespace(path=path)
    monkeypatch.setitem(sys.modules, "nas_201_api", module)
    net = select(
        Scores(), fast=False, query=lambda api, found, logging: asked.append((api.path, found))
    )
    assert asked[0][0].endswith("NAS-Bench-201-v1_0-e61699.pth")
    assert asked[0][1].tostr() == net.genotype().tostr()


def test_without_the_benchmark_nothing_is_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nas_201_api", None)
    scores = Scores()
    with pytest.raises(ImportError):
        select(scores, fast=False)
    assert scores.masked == []
