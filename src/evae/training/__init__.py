"""A dataset folder becomes a trained tokenizer, and with it a trained prior.

Enters: a dataset, or an `IterableDataset` of cells, and settings. Leaves: a run folder that holds the model, its
processor and its code, the settings and the log. The inner rooms hold the settings, the one loop for both stages, and
what a run remembers to go on exactly. May import: `data`, `models`, `common`.
"""

from typing import TYPE_CHECKING

from evae.common.lazy import lazy_names

if TYPE_CHECKING:
    from evae.training.prior import train_prior
    from evae.training.tokenizer import train_tokenizer

__all__ = ["train_prior", "train_tokenizer"]

if not TYPE_CHECKING:  # a type checker would take every name for granted
    __getattr__ = lazy_names(__name__, {"train_prior": "prior", "train_tokenizer": "tokenizer"})
