"""Which of several matrices holds the raw counts, told by some of its values (`layer="auto"`).

Files of CELLxGENE have log-normalised values in X and counts in `raw`; others keep counts in a layer.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from evae.models.contract_evae import EvaeError, check_raw_counts

AUTO = "auto"
SAMPLE = 200_000  # values looked at
USUAL = ("counts", "raw_counts", "raw", "umi", "umi_counts")  # names of counts, where several matrices could be

Sample = Callable[[], np.ndarray]


def layers_of_counts(samples: Mapping[str, Sample]) -> list[str]:
    """The layers whose looked-at values are raw counts.

    Args:
        samples: of every layer what gives some of its values.
    """
    found = []
    for name, sample in samples.items():
        with suppress(EvaeError):
            check_raw_counts(sample())
            found.append(name)
    return found


def choose_counts(samples: Mapping[str, Sample], path: Path | str) -> tuple[str, str]:
    """The layer of raw counts, and a sentence that says so where it is not X.

    X is taken where it holds counts, else the only other layer that does, else the only one of these with a usual name.

    Raises:
        EvaeError: none does, or several do, and no name tells which.
    """
    found = layers_of_counts(samples)
    if "X" in found:
        return "X", ""
    usual = [name for name in found if name.lower() in USUAL]
    chosen = found if len(found) == 1 else usual
    if len(chosen) != 1:
        held = f"several matrices with whole numbers ({', '.join(found)})" if found else "no raw counts"
        raise EvaeError(f"{path} holds {held}, of {', '.join(samples) or 'none'}; name the layer of the counts.")
    others = f"X holds no counts; those in '{chosen[0]}' are taken" if "X" in samples else f"in '{chosen[0]}'"
    return chosen[0], f"raw counts of {path}: {others}"


def narrowest(values: np.ndarray, source: str) -> np.ndarray:
    """Raw counts in the narrowest unsigned integers that hold the largest of them.

    Args:
        values: stored values of any type.
        source: what to call them in a message.

    Raises:
        EvaeError: they are no raw counts.
    """
    largest = values.max(initial=0) if values.dtype.kind in "uifb" else np.inf
    fitting = next((kind for kind in (np.uint8, np.uint16, np.uint32) if largest <= np.iinfo(kind).max), None)
    if fitting is not None:
        with np.errstate(invalid="ignore"):  # NaN, which equals nothing
            narrow: np.ndarray = values.astype(fitting)
        if np.array_equal(narrow, values):
            return narrow
    check_raw_counts(values, source)
    return values.astype(np.int64)


def refuse_layer(layer: str | None, what: str) -> None:
    """Raise `EvaeError` for the name of a layer where `what` has none."""
    if layer not in (None, "X", AUTO):
        raise EvaeError(f"{what} has no layers; leave layer out.")


def values_of(matrix: Any) -> np.ndarray:
    """Some values of a matrix in memory or backed."""
    rows = matrix[: max(1, SAMPLE // max(1, matrix.shape[1]))]
    return np.asarray(rows.data) if sp.issparse(rows) else np.asarray(rows)
