# SPDX-License-Identifier: Apache-2.0
"""``python -m darts_fast`` is ``darts-fast``."""

import sys

from darts_fast.cli import main

sys.exit(main())
