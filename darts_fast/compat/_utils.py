# SPDX-License-Identifier: Apache-2.0
"""Small helpers that the training scripts of all originals have."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class AvgrageMeter:
    """A running mean: `update(val, n)` adds a mean of n values; `avg`, `sum`, `cnt`."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.avg: Any = 0
        self.sum: Any = 0
        self.cnt = 0

    def update(self, val: Any, n: int = 1) -> None:
        self.sum += val * n
        self.cnt += n
        self.avg = self.sum / self.cnt


def accuracy(output: Tensor, target: Tensor, topk: Sequence[int] = (1,)) -> list[Tensor]:
    """For each k the percentage of rows [N, classes] whose target [N] is among the k largest."""
    found = output.topk(max(topk), dim=1).indices == target.unsqueeze(1)
    return [found[:, :k].any(1).float().mean() * 100.0 for k in topk]


def count_parameters_in_MB(model: nn.Module) -> float:  # noqa: N802
    """Millions of weights, without those of an auxiliary head; alphas do not count."""
    weights = {id(parameter) for parameter in model.parameters()}
    return sum(
        parameter.numel() / 1e6
        for name, parameter in model.named_parameters()
        if "auxiliary" not in name and id(parameter) in weights
    )


def save_checkpoint(
    state: Mapping[str, Any], is_best: bool, save: str | Path, name: str = "checkpoint.pth.tar"
) -> None:
    """Write `state` into the directory `save`; the best also as ``model_best.pth.tar``."""
    path = Path(save) / name
    torch.save(state, path)
    if is_best:
        shutil.copyfile(path, path.with_name("model_best.pth.tar"))


def save(model: nn.Module, model_path: str | Path) -> None:
    """Write the state_dict, which has no alphas."""
    torch.save(model.state_dict(), model_path)


def load(model: nn.Module, model_path: str | Path) -> None:
    """Load a state_dict strictly, onto the devices of the model."""
    model.load_state_dict(torch.load(model_path, map_location="cpu"))


def create_exp_dir(path: str | Path, scripts_to_save: Iterable[str | Path] | None = None) -> None:
    """Make a directory, unless it exists, and copy scripts into its ``scripts``."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    print(f"Experiment dir : {path}")
    if scripts_to_save is not None:
        scripts = path / "scripts"
        scripts.mkdir()
        for script in scripts_to_save:
            shutil.copyfile(script, scripts / Path(script).name)
