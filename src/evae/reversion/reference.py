"""A ranking of targets from elsewhere, to compare with."""

from collections.abc import Sequence
from pathlib import Path

from evae.models.contract_evae import EvaeError, check_unique


def read_reference(reference: str | Path | Sequence[str] | None) -> list[str] | None:
    """Names of targets, best first.

    Args:
        reference: the names, or a text file with one a line; of a table (.csv, .tsv) the first column counts. Lines
            that are empty or begin with # and a heading `target` are passed over.

    Raises:
        EvaeError: no such file, no name, or a name that stands twice.
    """
    if reference is None:
        return None
    if isinstance(reference, str | Path):
        path = Path(reference)
        if not path.is_file():
            raise EvaeError(f"no such file: {path}")
        lines = [line.replace("\t", ",").split(",")[0].strip() for line in path.read_text().splitlines()]
        names = [line for line in lines if line and not line.startswith("#")]
        if names and names[0].lower() == "target":
            names = names[1:]
    else:
        names = [str(name) for name in reference]
    if not names:
        raise EvaeError("the reference ranking names no target.")
    check_unique(names, "reference target")
    return names
