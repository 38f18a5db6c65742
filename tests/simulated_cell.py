# SPDX-License-Identifier: Apache-2.0
"""The CUDA half of mixed_cell, relu_conv_norm and move_running_statistics, emulated on the CPU."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from simt_build import Build
from simulator import Simulated

from darts_fast import _ops
from darts_fast._ops import _mixed_cell, _relu_conv_norm
from darts_fast._ops._direct import direct

_KERNELS = ["cuda/running_statistics_kernels.cu"]
_BINDINGS = [
    *(f"mixed_cell_{part}.cpp" for part in ("checks", "slots", "gradients")),
    *(f"cuda/{name}.cpp" for name in ("relu_conv_norm", "running_statistics")),
]


class SimulatedCell(Simulated):
    """One library for the three ops: they share kernels."""

    def __init__(self, folder: Path, build: Build = Build.PLAIN) -> None:
        super().__init__(folder, "mixed_cell", build, kernels=_KERNELS, bindings=_BINDINGS)

    def replace(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Puts the emulated kernels in the place of the CPU's, for all that is called in Python."""
        for module, name in ((_mixed_cell, "mixed_cell"), (_relu_conv_norm, "relu_conv_norm")):
            self._replace_op(monkeypatch, module, name)
        move = _ops.move_running_statistics
        monkeypatch.setattr(
            _ops, "move_running_statistics", lambda *arguments: self.call(move, *arguments)
        )

    def _replace_op(self, monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str) -> None:
        forward, backward = getattr(module, name), getattr(module, f"{name}_backward")

        def simulated_forward(*arguments: Any) -> Any:
            return self.call(forward, *arguments)

        def simulated_backward(*arguments: Any) -> Any:
            return self.call(backward, *arguments)

        # The registered formula, which finds the backward by its name.
        monkeypatch.setattr(module, f"{name}_backward", simulated_backward)
        function = direct(simulated_forward, module._setup, module._autograd)
        monkeypatch.setattr(_ops, f"call_{name}", function)
        monkeypatch.setattr(_ops, name, simulated_forward)
