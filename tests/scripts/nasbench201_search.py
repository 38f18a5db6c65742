# SPDX-License-Identifier: Apache-2.0
"""A search and a decision on NAS-Bench-201 as users of darts-pt write them, known to them by its
import lines.
"""

import nasbench201.utils as ig_utils
import torch
from nasbench201.architect_ig import Architect
from nasbench201.cell_operations import SearchSpaceNames
from nasbench201.search_model_darts_proj import TinyNetworkDartsProj
from torch import nn


def build(args):
    space = SearchSpaceNames["nas-bench-201"]
    loss = nn.CrossEntropyLoss()
    return TinyNetworkDartsProj(
        C=args.init_channels,
        N=1,
        max_nodes=4,
        num_classes=5,
        criterion=loss,
        search_space=space,
        args=args,
    )


def run(args, train_queue, valid_queue):
    torch.manual_seed(args.seed)
    model = build(args)
    architect = Architect(model, args)
    lines = []
    for _ in range(args.epochs):
        lines += train(args, train_queue, valid_queue, model, architect)
    decisions = [model.genotype().tostr()]
    losses = []
    for op in range(model.num_op):
        weights = model.get_projected_weights()
        mask = torch.ones_like(weights[2])
        mask[op] = 0
        weights[2] = weights[2] * mask
        losses.append(infer(valid_queue, model, weights=weights, eval=False))
    model.project_op(2, losses.index(max(losses)))
    lines += losses + train(args, train_queue, valid_queue, model, architect)
    decisions.append(model.genotype().tostr())
    again = build(args)
    again.load_state_dict(model.state_dict())
    again.set_arch_parameters(model.arch_parameters())
    return model, again, lines, decisions


def train(args, train_queue, valid_queue, model, architect):
    losses = []
    for input, target in train_queue:
        model.train()
        input_search, target_search = next(iter(valid_queue))
        model.optimizer.zero_grad()
        architect.optimizer.zero_grad()
        shared = architect.step(
            *(input, target, input_search, target_search),
            eta=args.learning_rate,
            network_optimizer=model.optimizer,
        )
        model.optimizer.zero_grad()
        architect.optimizer.zero_grad()
        _, loss = model.step(input, target, args, shared=shared)
        losses.append(loss.item())
    return losses


def infer(valid_queue, model, weights, eval=True):
    objs = ig_utils.AvgrageMeter()
    model.train(not eval)
    with torch.no_grad():
        for input, target in valid_queue:
            loss = model._criterion(model(input, weights=weights), target)
            objs.update(loss.item(), input.size(0))
    return objs.avg
