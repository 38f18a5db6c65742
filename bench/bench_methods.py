# SPDX-License-Identifier: Apache-2.0
"""Search steps of every method: data, architecture and weight steps, as `Search` takes them.

Same supernet as bench_search_epoch.py. A forward and backward pass counts 1, a forward alone a
third, an exact product with a second derivative 2; what a step takes is counted while it runs. The
last fact is the rate of such passes beside that of first-order DARTS, measured in turns with it: 1
means that the method costs what its passes cost. The supernet of PC-DARTS is another one, with a
quarter of the channels in its operations.

iDARTS has two rows: Hessian-vector products by differences of fused gradients, and exact ones by a
second backward pass, which no kernel of this package computes.
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
from darts_fast.search.methods.products import InnerDerivatives

# Method and options by row, so that the first epoch has what the method is about.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in METHODS},
    "pc-darts": ("pc-darts", {"begin": 0}),
    "idarts": ("idarts", {"inner_steps": 1, "products": "difference"}),
    "idarts, exact double backward": ("idarts", {"inner_steps": 1}),
}
# The graph of a second derivative holds every map of the plain modules: 25 GB at a batch of 64,
# and minutes a step.
BATCHES = {**dict.fromkeys(ROWS, 64), "idarts, exact double backward": 4}
FORWARD = 1 / 3
PRODUCT = 2


class Case:
    """A supernet in training with the method of a row; a call is one epoch of so many steps."""

    def __init__(self, row: str, batch: int, *, channels: int, layers: int) -> None:
        data = EpochCase("fused", batch, 4, 3).data
        torch.manual_seed(0)
        method, options = ROWS[row]
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
        gradients, exact = Loop.gradients, InnerDerivatives._exact

        def counted(loop: Loop, batch: Any, leaves: Sequence[Tensor], *rest: Any) -> Any:
            nonlocal found
            found += 1 if len(leaves) > 0 else FORWARD
            return gradients(loop, batch, leaves, *rest)

        def counted_product(inner: InnerDerivatives, *rest: Any) -> Any:
            nonlocal found
            found += PRODUCT + (inner._first is None)  # the gradient with its graph, made once
            return exact(inner, *rest)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Loop, "gradients", counted)
            patch.setattr(InnerDerivatives, "_exact", counted_product)
            self.epoch()
        return found / STEPS + 1


@pytest.mark.parametrize(("row", "batch"), BATCHES.items(), indirect=["batch"])
def test_search_steps(measure: Callable[..., None], smoke: bool, row: str, batch: int) -> None:
    sizes = {"channels": 4, "layers": 3} if smoke else {"channels": CHANNELS, "layers": 8}
    case, first = Case(row, batch, **sizes), Case("darts", batch, **sizes)
    passes, of_first = case.passes(), first.passes()
    mine, base = alternate([case.epoch, first.epoch], rounds=1 if smoke else 5)
    measure(
        case.epoch,
        group=f"{STEPS} search steps of {row}, batch {batch}",
        rival="fused",
        rounds=3,
        facts={
            "steps/s": STEPS / mine.wall,
            "forward-backward passes a step": passes,
            "of the first-order rate of passes": (passes / mine.wall) / (of_first / base.wall),
        },
    )
