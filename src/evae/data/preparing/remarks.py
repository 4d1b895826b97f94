"""What a person should know of the cells of a dataset before training on it: what is too few, and what stands twice."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evae.common.messages import number_of
from evae.common.numbers import counted
from evae.data.preparing.describe import CellLabels, Totals
from evae.data.reading.file_counts import FileCounts
from evae.models.contract_evae import EvaeError, parts_of

FEW = 10  # training cells of a perturbation


def check_given_once(files: Sequence[Path]) -> None:
    """Raise `EvaeError` for a file that is given twice, under whatever name."""
    seen: dict[tuple[int, int], Path] = {}
    for path in files:
        if not path.exists():
            continue  # the reader names it
        state = path.stat()
        other = seen.setdefault((state.st_dev, state.st_ino), path)
        if other is not path:
            raise EvaeError(f"{path} is the same file as {other}; give every file once.")


def remarks(labels: CellLabels, meta: dict[str, Any], control: str, copies: str) -> list[str]:
    """Sentences on a dataset: no perturbed cells, perturbations that training does not see or hardly, copies.

    Args:
        labels: of all cells.
        meta: the content of dataset.json.
        control: name of the control.
        copies: from `copied_cells`.
    """
    table = meta["cell_counts"]
    counts = {
        name: sum(row.get(name, 0) for row in table["train"].values())
        for name in labels.perturbations
        if name != control
    }
    found = []
    if not counts:
        found.append("all cells are controls: a tokenizer can be trained on them, but no prior that predicts anything")
    known = {*counts, *labels.treatments}
    agents = {name: {_agent(part, labels) for part in parts_of(name, known, control)} for name in counts}
    trained = {agent for name, n in counts.items() if n for agent in agents[name]}
    unseen = [name for name, n in counts.items() if not n and not agents[name] <= trained]
    if unseen:
        found.append(
            f"{counted(unseen, 'perturbation')}: no cell is left to train on, so only a prior with "
            "perturbation_features (or that has them from another dataset) can predict this; others are refused"
        )
    few = [f"{name} ({n})" for name, n in counts.items() if 0 < n < FEW]
    if few:
        found.append(f"{counted(few, 'perturbation')}: fewer than {FEW} training cells, too few to learn what it does")
    return [*found, *([copies] if copies else [])]


def _agent(part: str, labels: CellLabels) -> str:
    return labels.treatments[part].agent if part in labels.treatments else part


def copied_cells(sources: list[FileCounts], totals: Totals, kept: np.ndarray) -> tuple[np.ndarray, str]:
    """Which cells stand once before, with the same name and the same totals, (cells,) bool, and a sentence on them.

    Args:
        sources: the files.
        totals: of all cells.
        kept: which of them are wanted, (cells,) bool.
    """
    file = np.repeat(np.arange(len(sources)), [s.n_cells for s in sources])
    cells = pd.DataFrame(
        {"name": totals.name, "full": totals.full, "panel": totals.panel, "expressed": totals.expressed}
    )[kept]
    again = np.zeros(len(kept), dtype=bool)
    again[kept] = cells.duplicated().to_numpy()
    if not again.any():
        return again, ""
    row = int(np.flatnonzero(again)[0])
    source = sources[file[row]]
    start = row - int(np.flatnonzero(file == file[row])[0])
    name = source.cell_ids(start, start + 1)[0]
    return again, (
        f"{number_of(again.sum(), 'cell stands', 'cells stand')} more than once, with the same name and the same "
        f"counts (such as '{name}' in {source.path.name}): a copy of a held-out cell may be trained on, so give every "
        "cell once"
    )
