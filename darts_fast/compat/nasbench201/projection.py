# SPDX-License-Identifier: Apache-2.0
"""DARTS-PT's selection (Wang et al., ICLR 2021, Algorithm 1) on NAS-Bench-201 as its code does it.

As in `darts_fast.compat.darts_pt.projection`, but with one cell type, no topology step and a
criterion of its own call.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from darts_fast.compat.darts_pt._tuning import Infer, Queue, draw, log_accuracy, tune
from darts_fast.compat.nasbench201.search_model_darts_proj import TinyNetworkDartsProj

__all__ = ["pt_project"]

API_FILE = "../data/NAS-Bench-201-v1_0-e61699.pth"  # where the original looks for the benchmark


def pt_project(
    train_queue: Queue,
    valid_queue: Queue,
    model: TinyNetworkDartsProj,
    architect: Any,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    args: Any,
    infer: Infer,
    query: Callable[..., None],
) -> None:
    """Decide every edge, with `args.proj_intv` epochs of tuning from one to the next.

    There are proj_intv * (edges - 1) epochs, and the last edge is decided at the start of the last
    one. With proj_intv 1 that leaves five epochs for six edges: one stays open, as published.

    Args: architect, see `darts_fast.compat.darts_pt.Architect`; optimizer and epoch are not used
    (the network gets a fresh optimizer with a tenth of `args.learning_rate`); args, with the flags
    of the original's script, `proj_crit` "acc" or "loss"; infer(queue, model, criterion, log=,
    eval=, weights=) -> (accuracy, loss); query(api, structure, logging), called at the end with the
    ``nas_201_api`` object of ``API_FILE``, neither of which is needed with `args.fast`. Raises
    ImportError or FileNotFoundError, before anything is decided, where they are missing.
    """
    api = None if args.fast else _load_api()

    def measured(queue: Queue, net: TinyNetworkDartsProj, **how: Any) -> tuple[float, float]:
        return infer(queue, net, criterion, **how)

    model.train()
    model.printing(logging)
    log_accuracy(model, train_queue, valid_queue, measured)
    epochs = args.proj_intv * (model.num_edge - 1)
    model.reset_optimizer(args.learning_rate / 10, args.momentum, args.weight_decay)
    for number in range(epochs):
        logging.info("epoch %d", number)
        if number % args.proj_intv == 0 or number == epochs - 1:
            logging.info("project")
            model.project_op(*_hardest_to_lose(model, valid_queue, args, measured))
            model.printing(logging)
        tune(model, architect, train_queue, valid_queue, args, None, 0.0)
        model.printing(logging)
        log_accuracy(model, train_queue, valid_queue, measured)
    if api is not None:
        query(api, model.genotype(), logging)


def _hardest_to_lose(
    model: TinyNetworkDartsProj, valid_queue: Queue, args: Any, infer: Infer
) -> tuple[int, int]:
    """A random open edge, and its operation whose removal hurts most, ties to the first."""
    edge = draw(model.candidate_flags)
    harm = []
    for op in range(model.num_op):
        weights = model.get_projected_weights().detach().clone()
        weights[edge, op] = 0
        accuracy, loss = infer(valid_queue, model, log=False, eval=False, weights=weights)
        logging.info("valid_acc %f", accuracy)
        logging.info("valid_loss %f", loss)
        harm.append(loss if args.proj_crit == "loss" else -accuracy)
    best = max(range(len(harm)), key=harm.__getitem__)
    logging.info("best opid %d", best)
    return edge, best


def _load_api() -> Any:
    from nas_201_api import NASBench201API

    return NASBench201API(API_FILE)
