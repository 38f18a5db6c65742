# SPDX-License-Identifier: Apache-2.0
"""The one tolerance policy: how far a result may be from the truth.

A result may be at most twice as wrong as plain PyTorch in the same dtype, both measured against the
same computation in float64, plus a floor of a few units in the last place of the largest value.
Gradients must also agree in direction and size, so that a small absolute tolerance cannot hide a
term that is missing.
"""

from __future__ import annotations

import torch
from torch import Tensor

ULPS = 8


def assert_close(
    name: str, actual: Tensor, eager: Tensor, truth: Tensor, *, gradient: bool = False
) -> None:
    """Fails unless `actual` is at most twice as far from `truth` as `eager` is, plus a floor.

    Args:
        name: what is compared, for the message.
        actual: the result under test, in any floating dtype.
        eager: the same computation by plain PyTorch in the dtype of `actual`.
        truth: the same computation in float64.
        gradient: also bound the relative L2 distance and the angle to `truth`.
    """
    assert truth.dtype == torch.float64, f"{name}: truth must be float64, got {truth.dtype}"
    assert actual.shape == truth.shape == eager.shape, (
        f"{name}: shapes differ: actual {list(actual.shape)}, eager {list(eager.shape)}, "
        f"truth {list(truth.shape)}"
    )
    assert actual.dtype == eager.dtype, f"{name}: dtypes differ: {actual.dtype}, {eager.dtype}"
    if truth.numel() == 0:
        return
    value, plain, exact = (x.detach().double().flatten() for x in (actual, eager, truth))
    finite = exact.isfinite()
    assert torch.equal(value[~finite].nan_to_num(), exact[~finite].nan_to_num()), (
        f"{name}: infinite or NaN values differ"
    )
    assert value[finite].isfinite().all(), f"{name}: not finite where the truth is"
    value, plain, exact = value[finite], plain[finite], exact[finite]
    if exact.numel() == 0:
        return
    eps = torch.finfo(actual.dtype).eps
    error = (value - exact).abs()
    allowed = 2 * (plain - exact).abs().max().item() + ULPS * eps * exact.abs().max().item()
    worst = int(error.argmax())
    assert error[worst].item() <= allowed, (
        f"{name}: error {error[worst].item():.3e} at flat index {worst} (got "
        f"{value[worst].item():.9g}, truth {exact[worst].item():.9g}) exceeds {allowed:.3e}; "
        f"{100 * (error > allowed).double().mean().item():.2f} % of the values do"
    )
    if gradient:
        _assert_same_direction(name, value, plain, exact, eps)


def _assert_same_direction(
    name: str, value: Tensor, plain: Tensor, exact: Tensor, eps: float
) -> None:
    norm = exact.norm().item()
    if norm == 0:
        return
    allowed = 2 * ((plain - exact).norm().item() / norm) + ULPS * eps
    distance = (value - exact).norm().item() / norm
    assert distance <= allowed, f"{name}: relative L2 error {distance:.3e} exceeds {allowed:.3e}"
    cosine = torch.dot(value, exact).item() / max(norm * value.norm().item(), 1e-300)
    assert cosine >= 1 - max(allowed, 1e-6), f"{name}: cosine to the truth is {cosine:.9f}"
