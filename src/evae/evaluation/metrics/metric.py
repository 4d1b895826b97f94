"""What is known of one metric, and of one table of metrics."""

from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

import numpy as np
import pandas as pd

Better: TypeAlias = Literal["low", "high"] | float | None
# Where a table or a metric is shown: "brief" is the list at the top of a report, "summary" the table in the terminal,
# "card" the model card, "score" the short list of calibrated scores.
Place: TypeAlias = Literal["table", "brief", "figure", "radar", "card", "summary", "study", "score"]
Values = TypeVar("Values", float, np.ndarray, pd.Series)


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: in records and in result.json.
        title: where people read it.
        better: "low", "high", or the value that is right; None for a plain count.
        meaning: what it says, in a few words.
        groups: the groups of records in whose tables it stands.
        places: where it is shown beside those tables.
        sensitive_to: what of a model's cells it depends on most: their means or their variance.
        nothing: its value where a prediction of no effect has none, such as a correlation with a constant; None if it
            always has one.
    """

    name: str
    title: str
    better: Better
    meaning: str
    groups: tuple[str, ...] = ()
    places: tuple[Place, ...] = ()
    sensitive_to: Literal["mean", "variance", None] = None
    nothing: float | None = None

    @property
    def heading(self) -> str:
        """The title with the direction that is better."""
        if self.better is None:
            return self.title
        arrow = {"low": "↓", "high": "↑"}.get(str(self.better)) or f"→{self.better:g}"
        return f"{self.title} {arrow}"

    def badness(self, values: Values) -> Values:
        """How far values are from the best one: lower is better for every metric."""
        if self.better == "high":
            return -values
        if self.better == "low" or self.better is None:
            return values
        return abs(values - float(self.better))


@dataclass(frozen=True)
class MetricTable:
    """One table: the records of a group at a level.

    Attributes:
        group: of the records.
        level: "pooled" over all pairs, "pair" for the mean over pairs, or "training".
        title: above the table.
        places: where its metrics are shown.
    """

    group: str
    level: str
    title: str
    places: tuple[Place, ...] = ("table",)
