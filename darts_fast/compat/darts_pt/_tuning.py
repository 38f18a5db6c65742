# SPDX-License-Identifier: Apache-2.0
"""What the selections of both spaces share: an open decision drawn, a tuning epoch, log lines."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from torch import Tensor

from darts_fast.compat._utils import AvgrageMeter, accuracy
from darts_fast.compat.darts_pt._softmaxed import Softmaxed

__all__ = ["Infer", "Perturb", "Queue", "draw", "log_accuracy", "tune"]

Infer = Callable[..., tuple[float, float]]
Queue = Iterable[tuple[Tensor, Tensor]]
Perturb = Callable[[Any, Tensor, Tensor, float], None]


def draw(is_open: Tensor) -> int:
    """One of the open decisions, from NumPy's global generator, so that its seed means the same."""
    return int(np.random.choice(is_open.nonzero().flatten().cpu().numpy()))  # noqa: NPY002


def log_accuracy(model: Any, train_queue: Queue, valid_queue: Queue, infer: Infer) -> None:
    """Lines with accuracy and loss of both loaders."""
    for name, queue in (("train", train_queue), ("valid", valid_queue)):
        accuracy, loss = infer(queue, model, log=False)
        logging.info("%s_acc  %f", name, accuracy)
        logging.info("%s_loss %f", name, loss)


def tune(
    model: Any,
    architect: Any,
    train_queue: Queue,
    valid_queue: Queue,
    args: Any,
    perturb_alpha: Perturb | None,
    epsilon_alpha: float,
) -> None:
    """One epoch: an alpha step on a random validation batch and a weight step per batch."""
    objs, top1, top5 = AvgrageMeter(), AvgrageMeter(), AvgrageMeter()
    device = next(model.parameters()).device

    def zero_grad() -> None:
        model.optimizer.zero_grad()
        architect.optimizer.zero_grad()

    for step, (images, labels) in enumerate(train_queue):
        model.train()
        batch = images.to(device), labels.to(device, non_blocking=True)
        valid = (tensor.to(device) for tensor in next(iter(valid_queue)))
        zero_grad()
        architect.step(*batch, *valid)
        if perturb_alpha is not None:
            assert isinstance(model, Softmaxed)
            model.softmax_arch_parameters()
            perturb_alpha(model, *batch, epsilon_alpha)
        zero_grad()
        logits, loss = model.step(*batch, args)
        if isinstance(model, Softmaxed) and model.softmaxed:
            model.restore_arch_parameters()
        prec1, prec5 = accuracy(logits, batch[1], topk=(1, min(5, logits.shape[1])))
        for meter, value in ((objs, loss), (top1, prec1), (top5, prec5)):
            meter.update(value.item(), len(images))
        if step % args.report_freq == 0:
            logging.info("train %03d %e %f %f", step, objs.avg, top1.avg, top5.avg)
        if args.fast:
            break
