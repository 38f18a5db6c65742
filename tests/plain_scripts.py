# SPDX-License-Identifier: Apache-2.0
"""Plain modules under the names that the import lines of tests/scripts say: what an original's
repository holds for such a script, written here with PyTorch alone.
"""

from __future__ import annotations

import copy
import os
import shutil
import types
from argparse import Namespace
from collections.abc import Iterable, Sequence
from typing import Any

import eager_supernets
import numpy as np
import torch
from originals import darts_pt
from plain_nasbench201 import TinyNetworkDartsProj
from plain_networks import DartsNetworkProj, SDartsNetworkProj
from torch import Tensor, nn


class AvgrageMeter:
    def __init__(self) -> None:
        self.avg, self.sum, self.cnt = 0.0, 0.0, 0

    def update(self, val: float, n: int = 1) -> None:
        self.sum, self.cnt = self.sum + val * n, self.cnt + n
        self.avg = self.sum / self.cnt


def accuracy(output: Tensor, target: Tensor, topk: Sequence[int] = (1,)) -> list[Tensor]:
    order = output.argsort(dim=1, descending=True)
    rank = (order == target[:, None]).int().argmax(1)
    return [torch.tensor(100.0 * (rank < k).sum().item() / len(target)) for k in topk]


def count_parameters_in_MB(model: nn.Module) -> float:  # noqa: N802
    return sum(p.numel() for p in model.parameters()) / 1e6


def create_exp_dir(path: str, scripts_to_save: Sequence[str] = ()) -> None:
    os.makedirs(os.path.join(path, "scripts"))
    for script in scripts_to_save:
        shutil.copy(script, os.path.join(path, "scripts"))


def save(model: nn.Module, path: str) -> None:
    torch.save(model.state_dict(), path)


def load(model: nn.Module, path: str) -> None:
    model.load_state_dict(torch.load(path))


def save_checkpoint(state: dict[str, Any], is_best: bool, save: str, per_epoch: bool) -> None:
    torch.save(state, os.path.join(save, f"checkpoint_{state['epoch']}.pth.tar"))


def adam(model: Any, args: Namespace) -> torch.optim.Adam:
    rates = {"lr": args.arch_learning_rate, "weight_decay": args.arch_weight_decay}
    return torch.optim.Adam(model.arch_parameters(), betas=(0.5, 0.999), **rates)


class Architect:
    """First order, or the second by a second network and finite differences (DARTS, eq. 7, 8)."""

    def __init__(self, model: Any, args: Namespace) -> None:
        self.model, self.args = model, args
        self.optimizer = adam(model, args)

    def step(self, x, y, x_valid, y_valid, eta, sgd, unrolled):  # type: ignore[no-untyped-def]
        alphas = self.model.arch_parameters()
        if unrolled:
            gradients = self.second_order((x, y), (x_valid, y_valid), eta, sgd)
        else:
            gradients = torch.autograd.grad(self.model._loss(x_valid, y_valid), alphas)
        for alpha, gradient in zip(alphas, gradients, strict=True):
            alpha.grad = gradient
        self.optimizer.step()

    def second_order(
        self, train: tuple[Tensor, Tensor], valid: tuple[Tensor, Tensor], eta: float, sgd: Any
    ) -> list[Tensor]:
        weights = list(self.model.parameters())
        slopes = torch.autograd.grad(self.model._loss(*train), weights)
        ahead = copy.deepcopy(self.model)
        with torch.no_grad():
            for moved, w, slope in zip(ahead.parameters(), weights, slopes, strict=True):
                velocity = sgd.state[w].get("momentum_buffer", torch.zeros_like(w))
                decayed = slope + self.args.weight_decay * w
                moved -= eta * (self.args.momentum * velocity + decayed)
        leaves = [*ahead.arch_parameters(), *ahead.parameters()]
        found = torch.autograd.grad(ahead._loss(*valid), leaves)
        count = len(ahead.arch_parameters())
        direct, vector = found[:count], found[count:]
        radius = 0.01 / torch.cat([v.flatten() for v in vector]).norm()
        up, down = (self.at(weights, vector, sign * radius, train) for sign in (1, -1))
        pairs = zip(direct, up, down, strict=True)
        return [d - eta * (p - n) / (2 * radius) for d, p, n in pairs]

    def at(
        self, weights: list[Any], vector: Iterable[Tensor], by: Tensor, train: tuple[Tensor, Tensor]
    ) -> Sequence[Tensor]:
        """The alphas' gradient with the weights moved by `by` times the vector."""
        kept = [w.detach().clone() for w in weights]
        with torch.no_grad():
            for w, v in zip(weights, vector, strict=True):
                w += by * v
        found = torch.autograd.grad(self.model._loss(*train), self.model.arch_parameters())
        with torch.no_grad():
            for w, value in zip(weights, kept, strict=True):
                w.copy_(value)
        return found


class FirstOrder:
    """That of darts-pt, whose gradients add up."""

    def __init__(self, model: Any, args: Namespace) -> None:
        self.model = model
        self.optimizer = adam(model, args)

    def step(self, x, y, x_valid, y_valid, *args, **kwargs):  # type: ignore[no-untyped-def]
        self.model._loss(x_valid, y_valid).backward()
        self.optimizer.step()


def clip(alphas: Iterable[Tensor]) -> None:
    """Rows between 0 and 1 that sum to 1; one without anything left is what was largest."""
    for alpha in alphas:
        for row in alpha.data:
            largest = int(row.argmax())
            row.clamp_(0, 1)
            if row.sum() == 0:
                row[largest] = 1
            row /= row.sum()


def Random_alpha(model: Any, X: Tensor, y: Tensor, epsilon: float) -> None:  # noqa: N802, N803
    for alpha in model.arch_parameters():
        alpha.data += torch.zeros_like(alpha).uniform_(-epsilon, epsilon)
    clip(model.arch_parameters())


def project_op(model, queue, args, infer, cell_type):  # type: ignore[no-untyped-def]
    """A random open edge and the operation without which the accuracy is least."""
    edge = np.random.choice(model.candidate_flags[cell_type].nonzero()[:, 0].numpy())  # noqa: NPY002
    found = []
    for op in range(model.num_ops):
        weights = model.get_projected_weights(cell_type).detach().clone()
        weights[edge, op] = 0
        tables = {kind: model.get_projected_weights(kind) for kind in ("normal", "reduce")}
        tables[cell_type] = weights
        accuracy, loss = infer(queue, model, log=False, _eval=False, weights_dict=tables)
        found.append(-loss if args.proj_crit[cell_type] == "loss" else accuracy)
    return edge, found.index(min(found))


def module(name: str, **members: Any) -> types.ModuleType:
    made = types.ModuleType(name)
    vars(made).update(members)
    return made


def stand_ins(network: type[nn.Module]) -> dict[str, types.ModuleType]:
    """The modules that a script imports, by name; network, that of ``model_search``."""
    helpers = {
        "AvgrageMeter": AvgrageMeter,
        "accuracy": accuracy,
        "count_parameters_in_MB": count_parameters_in_MB,
        "create_exp_dir": create_exp_dir,
        "load": load,
        "save": save,
        "save_checkpoint": save_checkpoint,
    }
    seven = [list(darts_pt.S5)] * 14
    space = {"primitives_normal": seven, "primitives_reduct": seven}
    names = {
        "utils": helpers,
        "architect": {"Architect": Architect},
        "model_search": {"Network": network},
        "attacker.perturb": {"Random_alpha": Random_alpha},
        "nasbench201.utils": helpers,
        "nasbench201.architect_ig": {"Architect": FirstOrder},
        "nasbench201.cell_operations": {
            "SearchSpaceNames": {"nas-bench-201": list(eager_supernets.NASBENCH201)}
        },
        "nasbench201.search_model_darts_proj": {"TinyNetworkDartsProj": TinyNetworkDartsProj},
        "sota.cnn.model_search_darts_proj": {"DartsNetworkProj": DartsNetworkProj},
        "sota.cnn.model_search_sdarts_proj": {"SDartsNetworkProj": SDartsNetworkProj},
        "sota.cnn.projection": {"project_op": project_op},
        "sota.cnn.spaces": {"spaces_dict": {"s5": space}},
        **{key: {} for key in ("attacker", "nasbench201", "sota", "sota.cnn")},
    }
    return {name: module(name, **members) for name, members in names.items()}
