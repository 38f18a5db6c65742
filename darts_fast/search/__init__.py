# SPDX-License-Identifier: Apache-2.0
"""Training a supernet and selecting from it."""

from darts_fast.reporter import Interrupted, NonFiniteLossError, Reporter
from darts_fast.search.config import METHODS, SAMPLINGS, SearchConfig
from darts_fast.search.early_stopping import EarlyStopping
from darts_fast.search.search import Search, SearchResult, genotype_text
from darts_fast.search.stopping_rules import EigenvalueRule, SkipRule
from darts_fast.search.trainer import Trainer

__all__ = [
    "METHODS",
    "SAMPLINGS",
    "EarlyStopping",
    "EigenvalueRule",
    "Interrupted",
    "NonFiniteLossError",
    "Reporter",
    "Search",
    "SearchConfig",
    "SearchResult",
    "SkipRule",
    "Trainer",
    "genotype_text",
]
