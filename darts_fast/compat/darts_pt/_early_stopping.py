# SPDX-License-Identifier: Apache-2.0
"""Early stopping by the largest eigenvalue of the alphas' Hessian (RobustDARTS, Zela et al., ICLR
2020, section 4.3), with the names and the counting of its code.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["EVLocalAvg"]


class EVLocalAvg:
    """Means of the eigenvalues of `window` successive measurements, one every `ev_freq` epochs.

    After `early_stop`: stop_search, and of the epoch to go back to stop_epoch, stop_genotype and
    stop_numparam; before it says stop, stop_genotype is that of the last measurement.
    """

    def __init__(self, window: int = 5, ev_freq: int = 2, total_epochs: int = 50) -> None:
        self.window = window
        self.ev_freq = ev_freq
        self.epochs = total_epochs
        self.stop_search = False
        self.stop_epoch = total_epochs - 1
        self.stop_genotype: Any = None
        self.stop_numparam: float = 0
        self.la_start_idx = 0
        self.la_end_idx = window
        self.reset()

    def reset(self) -> None:
        """Forget what was measured."""
        self.ev: list[float] = []
        self.ev_local_avg: list[float] = []
        self.genotypes: dict[int, Any] = {}
        self.numparams: dict[int, float] = {}
        self.la_epochs: dict[int, int] = {}

    def update(self, epoch: int, ev: float, genotype: Any, numparam: float = 0) -> None:
        """Take the measurement of an epoch.

        The mean of a full window belongs to its middle, `la_epochs` of its last epoch; there is
        none (-1) before half a window is measured. After the last epoch the window shrinks from
        behind, down to half.
        """
        self.ev.append(ev)
        self.genotypes[epoch] = genotype
        self.numparams[epoch] = numparam
        self.stop_genotype = genotype
        half = (self.window + 1) // 2
        if len(self.ev) >= half and epoch < self.epochs - 1:
            full = len(self.ev) >= self.window
            self._mean(self.la_start_idx if full else 0, self.la_end_idx)
            self.la_start_idx += full
            self.la_end_idx += full
            self.la_epochs[epoch] = epoch - self.ev_freq * (self.window // 2)
        elif len(self.ev) < half:
            self.la_epochs[epoch] = -1
        elif epoch == self.epochs - 1:
            for _ in range(half):
                self._mean(self.la_start_idx, self.la_end_idx)
                self.la_start_idx += 1

    def early_stop(
        self,
        epoch: int,
        factor: float = 1.3,
        es_start_epoch: int = 10,
        delta: int = 4,
        criteria: str = "local_avg",
    ) -> None:
        """Say whether the eigenvalue has grown by more than `factor` over the last `delta` means
        ("local_avg") or measurements ("exact"), counted from `es_start_epoch`.

        Raises ValueError for other criteria.
        """
        if criteria == "local_avg":
            back = self.la_epochs[epoch] - self.ev_freq * delta
            started, values = back >= es_start_epoch, self.ev_local_avg
        elif criteria == "exact":
            back = epoch - delta
            started, values = epoch > es_start_epoch, self.ev
        else:
            raise ValueError(f"early_stop: criteria must be local_avg or exact, got {criteria!r}")
        if started:
            self.stop_search = values[-1] / values[-1 - delta] > factor
            if self.stop_search:
                self.stop_epoch = back
                self.stop_genotype = self.genotypes[back]
                self.stop_numparam = self.numparams[back]

    def _mean(self, start: int, end: int) -> None:
        self.ev_local_avg.append(float(np.mean(self.ev[start:end])))
