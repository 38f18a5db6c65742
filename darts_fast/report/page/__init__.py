# SPDX-License-Identifier: Apache-2.0
"""The page of a report."""

from darts_fast.report.page.build import CELLS, FORMATS, PAGE, write_report

__all__ = ["CELLS", "FORMATS", "PAGE", "write_report"]
