# SPDX-License-Identifier: Apache-2.0
"""Search steps of every method: data, architecture and weight steps, as `Search` takes them.

Same supernet as bench_search_epoch.py. A forward and backward pass counts 1, a forward alone a
third; what a step takes is counted while it runs. The last fact is the rate of such passes beside
that of first-order DARTS, measured in turns with it: 1 means that the method costs what its passes
cost. The supernet of PC-DARTS is another one, with a quarter of the channels in its operations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from bench_search_epoch import CHANNELS, CLASSES, STEPS
from bench_search_epoch import Case as EpochCase
from timing import alternate
from torch import Tensor

from darts_fast.reporter import Reporter
from darts_fast.search import METHODS, SearchConfig, Trainer
from darts_fast.search.loop import Loop

# So that the first epoch has what the method is about.
OPTIONS: dict[str, dict[str, Any]] = {
    "pc-darts": {"begin": 0},
    "idarts": {"inner_steps": 1, "products": "difference"},
}
FORWARD = 1 / 3


class Case:
    """A supernet in training with a method; a call is one epoch of so many steps."""

    def __init__(self, method: str, batch: int, *, channels: int, layers: int) -> None:
        data = EpochCase("fused", batch, 4, 3).data
        torch.manual_seed(0)
        options = OPTIONS.get(method, {})
        config = SearchConfig(method, options, epochs=50, batch_size=batch, valid_freq=0)
        net = config.build_supernet("s5", channels=channels, num_classes=CLASSES, layers=layers)
        net.to(memory_format=torch.channels_last)
        self.trainer = Trainer(net, data, config)

    def epoch(self) -> None:
        self.trainer.run_epoch(Reporter(), lambda: None)
        self.trainer.epoch = 0

    def passes(self) -> float:
        """Forward and backward passes of one step."""
        found = 0.0
        gradients = Loop.gradients

        def counted(loop: Loop, batch: Any, leaves: Sequence[Tensor], *rest: Any) -> Any:
            nonlocal found
            found += 1 if len(leaves) > 0 else FORWARD
            return gradients(loop, batch, leaves, *rest)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Loop, "gradients", counted)
            self.epoch()
        return found / STEPS + 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch", [64], indirect=True)
def test_search_steps(measure: Callable[..., None], smoke: bool, method: str, batch: int) -> None:
    sizes = {"channels": 4, "layers": 3} if smoke else {"channels": CHANNELS, "layers": 8}
    case, first = Case(method, batch, **sizes), Case("darts", batch, **sizes)
    passes, of_first = case.passes(), first.passes()
    mine, base = alternate([case.epoch, first.epoch], rounds=1 if smoke else 5)
    measure(
        case.epoch,
        group=f"{STEPS} search steps of {method}, batch {batch}",
        rival="fused",
        rounds=3,
        facts={
            "steps/s": STEPS / mine.wall,
            "forward-backward passes a step": passes,
            "of the first-order rate of passes": (passes / mine.wall) / (of_first / base.wall),
        },
    )
