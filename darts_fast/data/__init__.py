# SPDX-License-Identifier: Apache-2.0
"""Image sets in memory, seeded batches of them, and batched augmentation."""

from darts_fast.data.augmentation import Augmentation
from darts_fast.data.batches import Batches, fixed_batches
from darts_fast.data.classes import describe_classes, describe_halves
from darts_fast.data.images import DataError, Dataset, Images
from darts_fast.data.readers import LabelledImages, from_dataset, load_data
from darts_fast.data.splits import split

__all__ = [
    "Augmentation",
    "Batches",
    "DataError",
    "Dataset",
    "Images",
    "LabelledImages",
    "describe_classes",
    "describe_halves",
    "fixed_batches",
    "from_dataset",
    "load_data",
    "split",
]
