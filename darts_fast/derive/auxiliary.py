# SPDX-License-Identifier: Apache-2.0
"""Auxiliary classifiers of the derived networks, attached behind the second reduction."""

from __future__ import annotations

from torch import Tensor, nn


class _PoolTo2x2(nn.Module):
    """Average pooling to 2x2 for any feature size.

    Sizes that the original's ``AvgPool2d(5, stride)`` reduces to 2x2 are pooled by it; all others,
    which the original cannot take, by adaptive pooling. [N, C, H, W] -> [N, C, 2, 2].
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        fits = [(size - 5) // self.stride + 1 == 2 for size in x.shape[-2:]]
        if all(fits):
            return nn.functional.avg_pool2d(x, 5, self.stride, count_include_pad=False)
        return nn.functional.adaptive_avg_pool2d(x, 2)

    def extra_repr(self) -> str:
        return f"stride={self.stride}"


class AuxiliaryHeadCIFAR(nn.Module):
    """ReLU, pooling to 2x2, 1x1 and 2x2 convolutions with BN, classifier.

    [N, C, H, W] -> [N, num_classes]. Its ReLU writes a new map where the original's changes the
    map that the next cell reads; cells begin with a ReLU, so their results are the same.
    """

    def __init__(self, C: int, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.ReLU(),
            _PoolTo2x2(stride=3),
            nn.Conv2d(C, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(inplace=True),
            nn.Conv2d(128, 768, 2, bias=False),
            nn.BatchNorm2d(768),
            nn.ReLU(inplace=True),
        )
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


class AuxiliaryHeadImageNet(nn.Module):
    """As `AuxiliaryHeadCIFAR` but without a BN behind the 2x2 convolution, as in the paper's runs.

    [N, C, H, W] -> [N, num_classes].
    """

    def __init__(self, C: int, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.ReLU(),
            _PoolTo2x2(stride=2),
            nn.Conv2d(C, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(inplace=True),
            nn.Conv2d(128, 768, 2, bias=False),
            nn.ReLU(inplace=True),
        )
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits
