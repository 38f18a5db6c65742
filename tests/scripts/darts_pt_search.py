# SPDX-License-Identifier: Apache-2.0
"""A search and two decisions as users of darts-pt write them, known to them by its import lines."""

import os

import nasbench201.utils as ig_utils
import numpy as np
import torch
from attacker.perturb import Random_alpha
from nasbench201.architect_ig import Architect
from sota.cnn.model_search_darts_proj import DartsNetworkProj
from sota.cnn.model_search_sdarts_proj import SDartsNetworkProj
from sota.cnn.projection import project_op
from sota.cnn.spaces import spaces_dict
from torch import nn


def build(args):
    kind = SDartsNetworkProj if args.method == "sdarts-proj" else DartsNetworkProj
    space = spaces_dict[args.search_space]
    loss = nn.CrossEntropyLoss()
    return kind(args.init_channels, 5, args.layers, loss, space, args, args.steps, args.steps)


def run(args, train_queue, valid_queue):
    torch.manual_seed(args.seed)
    np.random.seed(args.seed)  # noqa: NPY002
    model = build(args)
    architect = Architect(model, args)
    perturb_alpha = Random_alpha if args.method == "sdarts-proj" else None
    lines = []
    for _ in range(args.epochs):
        lines += train(args, train_queue, valid_queue, model, architect, perturb_alpha)
        lines += infer(valid_queue, model)
    decisions = [model.genotype()]
    for cell_type in ("normal", "reduce"):
        edge, op = project_op(model, valid_queue, args, infer, cell_type)
        model.project_op(edge, op, cell_type=cell_type)
        decisions.append((int(edge), int(op)))
    model.reset_optimizer(args.learning_rate / 10, args.momentum, args.weight_decay)
    lines += train(args, train_queue, valid_queue, model, architect, perturb_alpha)
    state = {
        "epoch": args.epochs,
        "state_dict": model.state_dict(),
        "alpha": model.arch_parameters(),
        "optimizer": model.optimizer.state_dict(),
        "arch_optimizer": architect.optimizer.state_dict(),
    }
    ig_utils.create_exp_dir(args.save)
    ig_utils.save_checkpoint(state, False, args.save, per_epoch=True)
    again = build(args)
    checkpoint = torch.load(os.path.join(args.save, f"checkpoint_{args.epochs}.pth.tar"))
    again.load_state_dict(checkpoint["state_dict"])
    again.set_arch_parameters(checkpoint["alpha"])
    again.optimizer.load_state_dict(checkpoint["optimizer"])
    Architect(again, args).optimizer.load_state_dict(checkpoint["arch_optimizer"])
    return model, again, lines, decisions


def train(args, train_queue, valid_queue, model, architect, perturb_alpha):
    losses = []
    optimizer = model.optimizer
    for input, target in train_queue:
        model.train()
        input_search, target_search = next(iter(valid_queue))
        optimizer.zero_grad()
        architect.optimizer.zero_grad()
        architect.step(input, target, input_search, target_search, args.learning_rate, optimizer)
        if perturb_alpha:
            model.softmax_arch_parameters()
            optimizer.zero_grad()
            architect.optimizer.zero_grad()
            perturb_alpha(model, input, target, args.epsilon_alpha)
        optimizer.zero_grad()
        architect.optimizer.zero_grad()
        _, loss = model.step(input, target, args)
        if perturb_alpha:
            model.restore_arch_parameters()
        losses.append(loss.item())
    return losses


def infer(valid_queue, model, log=True, _eval=True, weights_dict=None):
    objs, top1 = ig_utils.AvgrageMeter(), ig_utils.AvgrageMeter()
    model.train(not _eval)
    with torch.no_grad():
        for input, target in valid_queue:
            if weights_dict is None:
                loss, logits = model._loss(input, target, return_logits=True)
            else:
                logits = model(input, weights_dict=weights_dict)
                loss = model._criterion(logits, target)
            prec1, _ = ig_utils.accuracy(logits, target, topk=(1, 5))
            objs.update(loss.item(), input.size(0))
            top1.update(prec1.item(), input.size(0))
    return top1.avg, objs.avg
