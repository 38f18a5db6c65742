# SPDX-License-Identifier: Apache-2.0
"""The networks that a genotype stands for, with the names of the original code (DARTS, appendix A).

Module and state_dict names are those of the original, so its weight files load.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from darts_fast.derive.auxiliary import AuxiliaryHeadCIFAR, AuxiliaryHeadImageNet
from darts_fast.nn.operations import OPS, FactorizedReduce, Identity, ReLUConvBN, drop_path
from darts_fast.spaces import Genotype

_STEM_MULTIPLIER = 3


class Cell(nn.Module):
    """A cell of a derived network: two operations per node, the concatenated nodes as output.

    Args:
        genotype: both cells; the one that ``reduction`` names is built.
        C_prev_prev: channels of the output before the previous one.
        C_prev: channels of the previous output.
        C: channels of the cell's states.
        reduction: the operations that read the two inputs have stride 2.
        reduction_prev: the previous cell was a reduction, so ``s0`` is twice as large.
    """

    def __init__(
        self,
        genotype: Genotype,
        C_prev_prev: int,
        C_prev: int,
        C: int,
        reduction: bool,
        reduction_prev: bool,
    ) -> None:
        super().__init__()
        self.preprocess0 = (
            FactorizedReduce(C_prev_prev, C)
            if reduction_prev
            else ReLUConvBN(C_prev_prev, C, 1, 1, 0)
        )
        self.preprocess1 = ReLUConvBN(C_prev, C, 1, 1, 0)
        entries = genotype.reduce if reduction else genotype.normal
        self._concat = list(genotype.reduce_concat if reduction else genotype.normal_concat)
        self.primitives = tuple(name for name, _ in entries)
        self._indices = [state for _, state in entries]
        self._steps = len(entries) // 2
        self.multiplier = len(self._concat)
        self._ops = nn.ModuleList(
            OPS[name](C, 2 if reduction and state < 2 else 1, True) for name, state in entries
        )

    def forward(self, s0: Tensor, s1: Tensor, drop_prob: float) -> Tensor:
        """States [N, C_prev_prev, 2H or H, ...] and [N, C_prev, H, W] to [N, multiplier * C, ...].

        In training every operation's output but that of an identity is dropped per image with
        probability ``drop_prob`` (FractalNet, Larsson et al., ICLR 2017).
        """
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        for node in range(self._steps):
            pair = (2 * node, 2 * node + 1)
            outputs = [self._ops[entry](states[self._indices[entry]]) for entry in pair]
            if self.training and drop_prob > 0:
                outputs = [
                    output
                    if isinstance(self._ops[entry], Identity)
                    else drop_path(output, drop_prob)
                    for entry, output in zip(pair, outputs, strict=True)
                ]
            states.append(outputs[0] + outputs[1])
        return torch.cat([states[state] for state in self._concat], dim=1)


def _halved(name: str, where: str, size: tuple[int, int], image: tuple[int, int]) -> None:
    if size[0] % 2 or size[1] % 2:
        raise ValueError(
            f"{name}: height and width must be even where a skip connection halves them, "
            f"got {size[0]}x{size[1]} {where} for images of {image[0]}x{image[1]}"
        )


class _DerivedNetwork(nn.Module):
    """The cells between stem and classifier; a subclass builds its stem first."""

    cells: nn.ModuleList
    auxiliary_head: nn.Module
    global_pooling: nn.Module
    classifier: nn.Module

    def __init__(self, num_classes: int, layers: int, auxiliary: bool) -> None:
        super().__init__()
        if layers < 1 or num_classes < 1:
            raise ValueError(
                f"{type(self).__name__}: layers and num_classes must be at least 1, "
                f"got layers={layers}, num_classes={num_classes}"
            )
        self._layers = layers
        self._auxiliary = auxiliary
        self.drop_path_prob = 0.0

    @property
    def reductions(self) -> list[bool]:
        """For every cell whether it is a reduction."""
        return list(self._reductions)

    def _build_cells(
        self, genotype: Genotype, channels: Sequence[int], C: int, reduction_prev: bool
    ) -> tuple[int, int]:
        """Append the cells; channels behind the auxiliary head's cell and behind the last."""
        C_prev_prev, C_prev = channels
        C_auxiliary = C_prev
        self.cells = nn.ModuleList()
        self._reductions: list[bool] = []
        for index in range(self._layers):
            reduction = index in (self._layers // 3, 2 * self._layers // 3)
            if reduction:
                C *= 2
            cell = Cell(genotype, C_prev_prev, C_prev, C, reduction, reduction_prev)
            self.cells.append(cell)
            self._reductions.append(reduction)
            reduction_prev = reduction
            C_prev_prev, C_prev = C_prev, cell.multiplier * C
            if index == 2 * self._layers // 3:
                C_auxiliary = C_prev
        return C_auxiliary, C_prev

    def _check_cells(
        self, s0: tuple[int, int], s1: tuple[int, int], image: tuple[int, int]
    ) -> None:
        """Follow the sizes through the cells."""
        name = type(self).__name__
        for index, cell in enumerate(self.cells):
            if isinstance(cell.preprocess0, FactorizedReduce):
                _halved(name, f"before cell {index}", s0, image)
            if any(
                isinstance(op, FactorizedReduce) for op in cell.get_submodule("_ops").children()
            ):
                _halved(name, f"in cell {index}", s1, image)
            s0 = s1
            if self._reductions[index]:
                s1 = ((s1[0] + 1) // 2, (s1[1] + 1) // 2)

    def _run_cells(self, s0: Tensor, s1: Tensor) -> tuple[Tensor, Tensor | None]:
        logits_aux = None
        for index, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1, self.drop_path_prob)
            if index == 2 * self._layers // 3 and self._auxiliary and self.training:
                logits_aux = self.auxiliary_head(s1)
        logits: Tensor = self.classifier(self.global_pooling(s1).flatten(1))
        return logits, logits_aux


class NetworkCIFAR(_DerivedNetwork):
    """Derived network for images of about 32x32.

    A 3x3 convolution with BN to 3C channels, ``layers`` cells of which numbers layers // 3 and
    2 * layers // 3 are reductions, global average pooling, a linear classifier.

    Args:
        C: channels of the first cells; even.
        num_classes: outputs.
        layers: cells.
        auxiliary: build an auxiliary classifier behind the second reduction, for training only.
        genotype: the two cells.

    Attributes:
        drop_path_prob: drop-path probability in training, 0 until it is set.

    Raises:
        ValueError: ``layers`` or ``num_classes`` is below 1, or C is not a positive even number.
    """

    def __init__(
        self, C: int, num_classes: int, layers: int, auxiliary: bool, genotype: Genotype
    ) -> None:
        super().__init__(num_classes, layers, auxiliary)
        if C < 2 or C % 2:
            raise ValueError(f"NetworkCIFAR: C must be even and at least 2, got {C}")
        stem = _STEM_MULTIPLIER * C
        self.stem = nn.Sequential(
            nn.Conv2d(3, stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem)
        )
        C_auxiliary, C_last = self._build_cells(genotype, (stem, stem), C, False)
        if auxiliary:
            self.auxiliary_head = AuxiliaryHeadCIFAR(C_auxiliary, num_classes)
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(C_last, num_classes)

    def check_image_size(self, h: int, w: int) -> None:
        """ValueError if a skip connection would halve an odd height or width."""
        self._check_cells((h, w), (h, w), (h, w))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images [N, 3, H, W] to logits [N, num_classes] and the auxiliary head's, or None.

        The auxiliary head runs in training only. Raises ValueError for sizes that cannot work.
        """
        self.check_image_size(x.shape[-2], x.shape[-1])
        s = self.stem(x)
        return self._run_cells(s, s)


def imagenet_stems(C: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Two stems of C channels, one behind the other: a quarter and an eighth of the size."""
    first = nn.Sequential(
        nn.Conv2d(3, C // 2, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(C // 2),
        nn.ReLU(inplace=True),
        nn.Conv2d(C // 2, C, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(C),
    )
    second = nn.Sequential(
        nn.ReLU(), nn.Conv2d(C, C, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(C)
    )
    return first, second


class NetworkImageNet(_DerivedNetwork):
    """Derived network for images of about 224x224: two stems that divide the size by 8.

    Arguments, attributes and errors as `NetworkCIFAR`; the original's last pooling, 7x7 windows for
    224x224 images, is a global one here, so other sizes work.
    """

    def __init__(
        self, C: int, num_classes: int, layers: int, auxiliary: bool, genotype: Genotype
    ) -> None:
        super().__init__(num_classes, layers, auxiliary)
        if C < 2 or C % 2:
            raise ValueError(f"NetworkImageNet: C must be even and at least 2, got {C}")
        self.stem0, self.stem1 = imagenet_stems(C)
        C_auxiliary, C_last = self._build_cells(genotype, (C, C), C, True)
        if auxiliary:
            self.auxiliary_head = AuxiliaryHeadImageNet(C_auxiliary, num_classes)
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(C_last, num_classes)

    def check_image_size(self, h: int, w: int) -> None:
        """ValueError if a skip connection would halve an odd height or width."""
        quarter = ((h + 3) // 4, (w + 3) // 4)
        eighth = ((h + 7) // 8, (w + 7) // 8)
        self._check_cells(quarter, eighth, (h, w))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images [N, 3, H, W] to logits [N, num_classes] and the auxiliary head's, or None.

        The auxiliary head runs in training only. Raises ValueError for sizes that cannot work.
        """
        self.check_image_size(x.shape[-2], x.shape[-1])
        s0 = self.stem0(x)
        return self._run_cells(s0, self.stem1(s0))
