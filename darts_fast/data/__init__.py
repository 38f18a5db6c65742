# SPDX-License-Identifier: Apache-2.0
"""Image sets in memory, seeded batches of them, and batched augmentation."""

from darts_fast.data.augmentation import Augmentation
from darts_fast.data.batches import Batches, fixed_batches
from darts_fast.data.images import DataError, Dataset, Images, split
from darts_fast.data.readers import load_data

__all__ = [
    "Augmentation",
    "Batches",
    "DataError",
    "Dataset",
    "Images",
    "fixed_batches",
    "load_data",
    "split",
]
