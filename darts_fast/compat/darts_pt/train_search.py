# SPDX-License-Identifier: Apache-2.0
"""What the training script and the selection share."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from darts_fast.compat._utils import AvgrageMeter, accuracy

__all__ = ["infer"]

Queue = Iterable[tuple[Tensor, Tensor]]


def infer(
    valid_queue: Queue,
    model: Any,
    log: bool = True,
    _eval: bool = True,
    weights_dict: Mapping[str, Tensor] | None = None,
    *,
    report_freq: int = 50,
    fast: bool = False,
) -> tuple[float, float]:
    """Mean accuracy in percent and mean loss over a loader, without gradients.

    Args:
        log: write a line every `report_freq` batches.
        _eval: in evaluation mode, else in training mode: batch norms then use statistics of the
            batch and their running statistics move. The network is left in that mode.
        weights_dict: edge weights in place of the network's own.
        fast: only the first batch.
    """
    objs, top1, top5 = AvgrageMeter(), AvgrageMeter(), AvgrageMeter()
    device = next(model.parameters()).device
    model.train(not _eval)
    own = {} if weights_dict is None else {"weights_dict": weights_dict}
    with torch.no_grad():
        for step, (images, labels) in enumerate(valid_queue):
            target = labels.to(device, non_blocking=True)
            logits = model(images.to(device), **own)
            loss: Tensor = model._criterion(logits, target)
            prec1, prec5 = accuracy(logits, target, topk=(1, min(5, logits.shape[1])))
            objs.update(loss.item(), len(target))
            top1.update(prec1.item(), len(target))
            top5.update(prec5.item(), len(target))
            if step % report_freq == 0 and log:
                logging.info("valid %03d %e %f %f", step, objs.avg, top1.avg, top5.avg)
            if fast:
                break
    return top1.avg, objs.avg
