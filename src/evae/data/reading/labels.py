"""Labels of cells as text, whatever type their column has."""

from numbers import Real
from typing import Any

import numpy as np
import pandas as pd


def label_codes(values: Any) -> tuple[np.ndarray, list[str]]:
    """A column of labels as codes and the names they stand for.

    A whole number is written without a point: a column of 1 and 2 becomes 1.0 and 2.0 in a file where a label was once
    missing, and is still the same column.

    Args:
        values: (cells,) of text, numbers or categories.

    Returns:
        Codes (cells,) int32, -1 where the label is missing, and the names in the order in which they appear.
    """
    codes, distinct = pd.factorize(pd.Series(values), sort=False)
    merged, names = pd.factorize(np.array([_text(value) for value in distinct], dtype=object))
    return np.append(merged, -1)[codes].astype(np.int32), [str(name) for name in names]


def label_texts(values: Any) -> np.ndarray:
    """The labels as text, object (cells,); "" where a label is missing."""
    codes, names = label_codes(values)
    return np.array([*names, ""], dtype=object)[codes]


def _text(value: Any) -> str:
    whole = isinstance(value, Real) and not isinstance(value, bool) and float(value).is_integer()
    return str(int(value)) if whole else str(value)
