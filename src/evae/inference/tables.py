"""Tables of the user: csv, tsv or parquet files whose texts stay as they stand."""

from pathlib import Path
from typing import Any

import pandas as pd

from evae.common.messages import first_line
from evae.models.contract_evae import EvaeError


def read_texts(path: Path, what: str, **csv: Any) -> pd.DataFrame:
    """A table; of a csv or tsv file all columns are texts, so that a name such as 007 or NA stays one.

    Args:
        path: of the file.
        what: what to call it in a message, such as "the effects".
        **csv: further options of `pandas.read_csv`.

    Raises:
        EvaeError: no such file, another format, or a file that cannot be read.
    """
    if not path.is_file():
        raise EvaeError(f"{what} {path} do not exist; give a csv, tsv or parquet file.")
    if path.suffix not in (".csv", ".tsv", ".parquet"):
        raise EvaeError(f"{what} {path} are no csv, tsv or parquet file; convert them.")
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        separator = "\t" if path.suffix == ".tsv" else ","
        return pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, **csv)
    except (OSError, ValueError) as error:
        raise unreadable(path, what, error) from None


def unreadable(path: Path, what: str, error: Exception) -> EvaeError:
    """What to raise for a file with other content."""
    return EvaeError(f"{what} {path} cannot be read ({first_line(error)}); fix the file.")
