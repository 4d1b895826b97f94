"""A table of what to predict: one row a (cell type, perturbation) pair."""

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from evae.data.format import Pair
from evae.data.reading.labels import label_codes, label_texts
from evae.inference.tables import read_texts
from evae.inference.treatments import treated
from evae.models.contract_evae import EvaeError, near_matches

COLUMNS = ("perturbation", "cell_type", "n_cells", "dose", "dose_unit", "time")


def read_requests(given: pd.DataFrame | str | Path) -> pd.DataFrame:
    """The table with its texts as they stand: a name such as 007 or NA stays one.

    Raises:
        EvaeError: no such file, no csv, tsv or parquet file, no column `perturbation`, an unknown column, no row, an
            empty name.
    """
    if isinstance(given, pd.DataFrame):
        table, name = given, "the requests"
    else:
        table, name = read_texts(Path(given), "the requests", skipinitialspace=True), f"the requests {given}"
    unknown = [str(column) for column in table if column not in COLUMNS]
    if unknown:
        raise EvaeError(f"{name} have a column '{unknown[0]}'. {near_matches(unknown[0], COLUMNS)}")
    if "perturbation" not in table:
        raise EvaeError(f"{name} have no column 'perturbation'; give the columns {', '.join(COLUMNS)}.")
    if table.empty:
        raise EvaeError(f"{name} hold no row; name at least one perturbation.")
    for column in [c for c in COLUMNS[:2] if c in table]:
        if table[column].isna().any() or (table[column].astype(str).str.strip() == "").any():
            raise EvaeError(f"{name} leave a {column} empty; fill it in every row, or leave the column out.")
    return table.reset_index(drop=True)


def requested_pairs(
    given: pd.DataFrame | str | Path, controls: ad.AnnData | None, cell_type_key: str | None, processor: Any = None
) -> dict[Pair, int]:
    """How many cells to draw of every (cell type, perturbation) of the table.

    Args:
        given: columns `perturbation`, `cell_type` (all those of the controls if left out), `n_cells` (as many as
            the cell type has controls, if left out or empty), and `dose`, `dose_unit` and `time` (hours), which may be
            left out or empty.
        controls: control cells only.
        cell_type_key: their obs column of cell types.
        processor: of the model that knows the doses; None where the table holds none.

    Raises:
        EvaeError: see `read_requests`; a pair that stands twice, or what only controls could tell.
    """
    table = read_requests(given)
    labels = None
    if controls is not None and cell_type_key is not None and cell_type_key in controls.obs:
        labels = label_texts(controls.obs[cell_type_key])
    if "cell_type" not in table:
        if labels is None:
            raise EvaeError("the requests name no cell_type, and no controls do; add the column cell_type.")
        assert controls is not None
        table = table.merge(pd.DataFrame({"cell_type": label_codes(controls.obs[cell_type_key])[1]}), how="cross")
    names = table["perturbation"].astype(str) if processor is None else _labels(table, processor)
    pairs = list(zip(table["cell_type"].astype(str), names, strict=True))
    numbers = table["n_cells"] if "n_cells" in table else pd.Series([None] * len(table))
    found: dict[Pair, int] = {}
    for pair, number in zip(pairs, numbers, strict=True):
        if pair in found:
            raise EvaeError(f"the requests name {pair[1]} in {pair[0]} twice; give one row with all cells.")
        found[pair] = _number(number, pair, controls, labels)
    return found


def _labels(table: pd.DataFrame, processor: Any) -> list[str]:
    """The perturbation of every row with its dose and time."""
    labels = []
    for row in table.to_dict("records"):
        given = {name: row.get(name) for name in COLUMNS[3:]}
        given = {name: None if _is_empty(value) else value for name, value in given.items()}
        try:
            amounts = {name: None if given[name] is None else float(given[name]) for name in ("dose", "time")}
        except (TypeError, ValueError):
            raise EvaeError(
                f"the requests say dose '{given['dose']}' and time '{given['time']}' for {row['perturbation']}; give "
                "numbers."
            ) from None
        unit = None if given["dose_unit"] is None else str(given["dose_unit"])
        labels += treated(processor, [str(row["perturbation"])], amounts["dose"], unit, amounts["time"])
    return labels


def _is_empty(given: Any) -> bool:
    return given is None or (isinstance(given, float) and np.isnan(given)) or str(given).strip() in ("", "<NA>")


def _number(given: Any, pair: Pair, controls: ad.AnnData | None, labels: np.ndarray | None) -> int:
    if _is_empty(given):
        if controls is None:
            raise EvaeError(f"the requests say no n_cells for {pair[1]} in {pair[0]}; without controls, give it.")
        return controls.n_obs if labels is None else int((labels == pair[0]).sum())
    try:
        number = float(given)
    except (TypeError, ValueError):
        number = float("nan")
    if not number.is_integer() or number < 1:
        raise EvaeError(
            f"the requests say n_cells '{given}' for {pair[1]} in {pair[0]}; give a whole number from 1 on."
        )
    return int(number)
