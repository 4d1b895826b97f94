"""Numbers on their way to people and to JSON."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from evae.common.messages import number_of

UNDEFINED = "–"  # a number that is not defined, where people read it


def plain(value: Any) -> Any:
    """Plain Python values, a table as a list of its rows; NaN and infinity, which JSON does not have, become None."""
    if isinstance(value, pd.DataFrame):
        value = value.astype(object).to_dict(orient="records")
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def format_number(value: float, significant: int = 3) -> str:
    """A number with so many significant digits, without an exponent from 0.00001 on."""
    if math.isnan(value):
        return UNDEFINED
    if value == 0:
        return "0"
    value = float(f"{value:.{significant}g}")
    digits = max(significant - 1 - math.floor(math.log10(abs(value))), 0)
    return f"{value:.{min(digits, 5)}f}" if abs(value) >= 1e-5 else f"{value:.0e}"


def counted(names: Sequence[str], kind: str, most: int = 5) -> str:
    """How many things of a kind there are, and the first of their names: "7 cells (a, b, c, d, e and 2 more)"."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{number_of(len(names), kind)} ({', '.join(names[:most])}{more})"
