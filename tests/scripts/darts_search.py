# SPDX-License-Identifier: Apache-2.0
"""A search as users of quark0/darts and of PC-DARTS write it, known to them by its import lines."""

import os

import torch
import utils
from architect import Architect
from model_search import Network
from torch import nn


def run(args, train_queue, valid_queue):
    torch.manual_seed(args.seed)
    criterion = nn.CrossEntropyLoss()
    model = Network(args.init_channels, 5, args.layers, criterion, args.steps, args.steps)
    optimizer = torch.optim.SGD(
        model.parameters(),
        args.learning_rate,
        momentum=args.momentum,
        weight_decay=args.weight_decay,
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, args.epochs, eta_min=args.learning_rate_min
    )
    architect = Architect(model, args)
    utils.create_exp_dir(args.save, scripts_to_save=[__file__])
    lines = [utils.count_parameters_in_MB(model)]
    for _ in range(args.epochs):
        rate = scheduler.get_last_lr()[0]
        lines += train(args, train_queue, valid_queue, model, architect, criterion, optimizer, rate)
        scheduler.step()
        lines += infer(valid_queue, model, criterion)
        utils.save(model, os.path.join(args.save, "weights.pt"))
    again = Network(args.init_channels, 5, args.layers, criterion, args.steps, args.steps)
    utils.load(again, os.path.join(args.save, "weights.pt"))
    return model, again, lines, [model.genotype()]


def train(args, train_queue, valid_queue, model, architect, criterion, optimizer, rate):
    objs, top1 = utils.AvgrageMeter(), utils.AvgrageMeter()
    losses = []
    for input, target in train_queue:
        model.train()
        input_search, target_search = next(iter(valid_queue))
        architect.step(
            input, target, input_search, target_search, rate, optimizer, unrolled=args.unrolled
        )
        optimizer.zero_grad()
        logits = model(input)
        loss = criterion(logits, target)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip)
        optimizer.step()
        prec1, _ = utils.accuracy(logits, target, topk=(1, 5))
        objs.update(loss.item(), input.size(0))
        top1.update(prec1.item(), input.size(0))
        losses.append(loss.item())
    return [*losses, objs.avg, top1.avg]


def infer(valid_queue, model, criterion):
    objs, top1 = utils.AvgrageMeter(), utils.AvgrageMeter()
    model.eval()
    with torch.no_grad():
        for input, target in valid_queue:
            logits = model(input)
            (prec1,) = utils.accuracy(logits, target)
            objs.update(criterion(logits, target).item(), input.size(0))
            top1.update(prec1.item(), input.size(0))
    return [objs.avg, top1.avg]
