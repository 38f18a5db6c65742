# SPDX-License-Identifier: Apache-2.0
"""A derived network as files that run without darts_fast: torch.export and ONNX.

Both hold plain operators, take float32 images ``[batch, 3, height, width]`` with any batch and give
logits ``[batch, classes]``. The ONNX half needs the extra ``darts-fast[export]``.
"""

from __future__ import annotations

import importlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from darts_fast.derive.nasbench201 import NasBench201Network
from darts_fast.derive.network import NetworkCIFAR
from darts_fast.nn.operations import Noise

__all__ = [
    "INPUT",
    "OUTPUT",
    "Classifier",
    "MissingExtraError",
    "Runner",
    "check_equal",
    "export_program",
    "onnx_bytes",
    "onnx_runner",
    "program_bytes",
    "program_runner",
]

INPUT, OUTPUT = "images", "logits"

Runner = Callable[[Tensor], Tensor]


class MissingExtraError(ValueError):
    """A package of the extra ``export`` is not installed; the message says how to get it."""


class Classifier(nn.Module):
    """A derived network for use: images to logits, in evaluation mode.

    Args:
        net: the network; its weights are taken, not copied.
        mean, std: per channel; with both, images come in scale 0 to 1 and are normalised here.

    Raises:
        ValueError: the network draws random numbers, so that no file of it could be checked.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        net: NetworkCIFAR | NasBench201Network,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if any(isinstance(module, Noise) for module in net.modules()):
            raise ValueError(
                "export: the architecture must not draw random numbers, got operation noise"
            )
        self.net = net
        self.normalises = mean is not None and std is not None
        if mean is not None and std is not None:
            self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
            self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """``[N, 3, H, W]`` to ``[N, classes]``."""
        if self.normalises:
            images = (images - self.mean) / self.std
        out = self.net(images)
        logits: Tensor = out[0] if isinstance(out, tuple) else out
        return logits


def export_program(model: Classifier, image_size: tuple[int, int]) -> torch.export.ExportedProgram:
    """The network's operators by `torch.export`, for any batch of images of one size."""
    with torch.no_grad():
        return torch.export.export(
            model,
            (torch.zeros(2, 3, *image_size),),
            dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
        )


def program_bytes(program: torch.export.ExportedProgram) -> bytes:
    """A ``.pt2`` file, to be read by ``torch.export.load(path).module()``."""
    buffer = io.BytesIO()
    with _quiet():
        torch.export.save(program, buffer)
    return buffer.getvalue()


def program_runner(data: bytes) -> Runner:
    """What a ``.pt2`` file computes."""
    with _quiet():
        runner: Runner = torch.export.load(io.BytesIO(data)).module()
    return runner


def onnx_bytes(program: torch.export.ExportedProgram) -> bytes:
    """A ``.onnx`` file of the program, input ``images``, output ``logits``.

    Raises:
        MissingExtraError: onnx or onnxscript is not installed.
    """
    _need("onnx", "onnxscript")
    with _quiet():
        found = torch.onnx.export(
            program, dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False
        )
    assert found is not None
    data: bytes = found.model_proto.SerializeToString()
    return data


def onnx_runner(data: bytes, threads: int | None = None) -> Runner:
    """What an ``.onnx`` file computes, by onnxruntime on the CPU.

    threads: of an operator; default as many as torch uses.

    Raises:
        MissingExtraError: onnxruntime is not installed.
    """
    runtime = _need("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        (logits,) = session.run([OUTPUT], {INPUT: images.numpy()})
        return torch.from_numpy(logits)

    return run


def check_equal(
    name: str,
    model: Classifier,
    runner: Runner,
    image_size: tuple[int, int],
    *,
    batches: Sequence[int] = (1, 2, 5),
    tolerance: float = 1e-4,
) -> float:
    """The largest difference between the logits of the network and those of a file of it, on random
    images in batches of several sizes, relative to the largest logit where that is above 1.

    Raises:
        ValueError: it is above the tolerance; the message begins with ``name``.
    """
    draws = torch.Generator().manual_seed(0)
    worst = 0.0
    for batch in batches:
        images = torch.randn(batch, 3, *image_size, generator=draws)
        with torch.no_grad():
            wanted, got = model(images), runner(images)
        if got.shape != wanted.shape:
            raise ValueError(f"{name}: logits must be {list(wanted.shape)}, got {list(got.shape)}")
        difference = (got - wanted).abs().max() / wanted.abs().max().clamp(min=1)
        worst = max(worst, float(difference.nan_to_num(float("inf"))))
    if worst > tolerance:
        raise ValueError(
            f"{name}: logits must differ from the network's by at most {tolerance:g}, got {worst:g}"
        )
    return worst


def _need(*names: str) -> Any:
    """Import the modules of the extra ``export``; gives the last."""
    for name in names:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError:
            raise MissingExtraError(
                f"export: ONNX files need {name}, which is not installed; "
                "pip install 'darts-fast[export]'"
            ) from None
    return module


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters talk about other packages that are not there and about their own internals."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logging.disable(before)
