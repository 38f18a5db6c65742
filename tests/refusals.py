# SPDX-License-Identifier: Apache-2.0
"""What every refusal of data has in common."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from darts_fast.data import DataError


@contextmanager
def refused(*parts: str) -> Iterator[None]:
    """The block raises DataError in one line with all the parts in it."""
    with pytest.raises(DataError) as error:
        yield
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text
