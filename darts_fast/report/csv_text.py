# SPDX-License-Identifier: Apache-2.0
"""Tables as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["csv_text"]


def csv_text(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """The table with its heading, lines ended by a newline alone."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue()
