# SPDX-License-Identifier: Apache-2.0
"""The projections of DARTS-PT (Wang et al., ICLR 2021, Algorithm 1) as its code does them.

Every candidate is one pass of `infer` in training mode, so that running statistics move; loaders
shuffle and augment anew for each. `darts_fast.selection.select` scores all candidates of a decision
on the same batches in one pass; it takes the networks of this package as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from darts_fast.compat.darts_pt._tuning import Infer, Perturb, Queue, draw, log_accuracy, tune
from darts_fast.compat.darts_pt.model_search_darts_proj import DartsNetworkProj
from darts_fast.compat.darts_pt.utils import count_parameters_in_Compact, save_checkpoint
from darts_fast.selection.schedule import projection_schedule

__all__ = ["project_edge", "project_op", "pt_project"]


def project_op(
    model: DartsNetworkProj,
    proj_queue: Queue,
    args: Any,
    infer: Infer,
    cell_type: str,
    selected_eid: int | None = None,
) -> tuple[int, int]:
    """(edge, operation): on an open edge the operation whose removal hurts most, ties to the first.

    Args: args, with `proj_crit`, cell type -> "acc" or "loss"; infer(queue, model, log=, _eval=,
    weights_dict=) -> (accuracy, loss); selected_eid, default a random open edge, from NumPy's
    global generator.
    """
    if selected_eid is None:
        selected_eid = draw(model.candidate_flags[cell_type])
        logging.info("selected edge: %d %s", selected_eid, cell_type)
    masked = []
    for op in range(model.num_ops):
        weights = model.get_projected_weights(cell_type).detach().clone()
        weights[selected_eid, op] = 0
        masked.append(weights)
    harm = _harm(model, proj_queue, args, infer, cell_type, masked)
    best = max(range(len(harm)), key=harm.__getitem__)
    logging.info("best opid: %d", best)
    return selected_eid, best


def project_edge(
    model: DartsNetworkProj, proj_queue: Queue, args: Any, infer: Infer, cell_type: str
) -> tuple[int, list[int]]:
    """(node, edges): a random open node and the two inputs it keeps.

    One after the other the input goes whose removal hurts least, ties to the last. Each removal is
    compared with the complete node, as published. Arguments as in `project_op`.
    """
    node = draw(model.candidate_flags_edge[cell_type])
    logging.info("selected node: %d %s", node, cell_type)
    edges = model.nid2eids[node]
    while len(edges) > 2:
        masked = []
        for edge in edges:
            weights = model.get_projected_weights(cell_type).detach().clone()
            weights[edge] = 0
            masked.append(weights)
        harm = _harm(model, proj_queue, args, infer, cell_type, masked)
        del edges[min(range(len(harm)), key=lambda i: (harm[i], -i))]
    logging.info("top2 edges: (%d, %d)", *edges)
    return node, edges


def pt_project(
    train_queue: Queue,
    valid_queue: Queue,
    model: DartsNetworkProj,
    architect: Any,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    args: Any,
    infer: Infer,
    perturb_alpha: Perturb | None,
    epsilon_alpha: float,
) -> None:
    """Decide every edge and node, with `args.proj_intv` epochs of tuning from one to the next.

    Before each projection ``checkpoint_{epoch}.pth.tar`` is written to
    `args.dev_save_checkpoint_dir`; with `args.dev_resume_epoch` >= 0 the selection goes on from
    that one of `args.dev_resume_checkpoint_dir`.

    Args: architect, see `Architect`; optimizer and epoch are not used (the network gets a fresh
    optimizer with a tenth of `args.learning_rate`); args, with the flags of the original's script;
    infer, see `project_op`; perturb_alpha(model, input, target, epsilon_alpha) or None, before
    each weight step. Raises FileNotFoundError if the checkpoint to go on from does not exist.
    """
    schedule = projection_schedule(model.space, args.proj_intv)
    args.proj_crit = {"normal": args.proj_crit_normal, "reduce": args.proj_crit_reduce}
    model.train()
    model.printing(logging)
    log_accuracy(model, train_queue, valid_queue, infer)

    model.reset_optimizer(args.learning_rate / 10, args.momentum, args.weight_decay)
    # Saved but never stepped, as published: the tuning rate is constant.
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(
        model.optimizer, schedule.epochs, eta_min=args.learning_rate_min
    )
    first = 0
    if args.dev_resume_epoch >= 0:
        name = f"checkpoint_{args.dev_resume_epoch}.pth.tar"
        checkpoint = torch.load(Path(args.dev_resume_checkpoint_dir) / name, map_location="cpu")
        first = checkpoint["epoch"]
        model.set_state_dict(architect, scheduler, checkpoint)

    for number in range(first, schedule.epochs):
        logging.info("epoch %d", number)
        for kind in schedule.at(number):
            state = model.get_state_dict(number, architect, scheduler)
            save_checkpoint(state, False, args.dev_save_checkpoint_dir, per_epoch=True)
            logging.info("project %s", kind)
            for cell_type in model.space.cell_types:
                if kind == "op":
                    edge, op = project_op(model, valid_queue, args, infer, cell_type)
                    model.project_op(edge, op, cell_type)
                else:
                    node, edges = project_edge(model, valid_queue, args, infer, cell_type)
                    model.project_edge(node, edges, cell_type)
            model.printing(logging)
        tune(model, architect, train_queue, valid_queue, args, perturb_alpha, epsilon_alpha)
        model.printing(logging)
        log_accuracy(model, train_queue, valid_queue, infer)
    logging.info("projection finished")
    model.printing(logging)
    logging.info("param size = %f", count_parameters_in_Compact(model))
    logging.info("genotype = %s", model.genotype())


def _harm(
    model: DartsNetworkProj,
    queue: Queue,
    args: Any,
    infer: Infer,
    cell_type: str,
    masked: Sequence[Tensor],
) -> list[float]:
    """The loss, or minus the accuracy, under each table of weights."""
    found = []
    for weights in masked:
        tables: Mapping[str, Tensor] = {cell_type: weights}
        accuracy, loss = infer(queue, model, log=False, _eval=False, weights_dict=tables)
        logging.info("valid_acc  %f", accuracy)
        logging.info("valid_loss %f", loss)
        found.append(loss if args.proj_crit[cell_type] == "loss" else -accuracy)
    return found
