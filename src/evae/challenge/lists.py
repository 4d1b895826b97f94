"""What an entry must hold: the challenge's lists of genes, perturbations and contexts, and its limits.

As vcc-cli 0.3 reads and checks them: `gene_names.csv` has one gene a row, in the order of the entry's columns;
`pert_counts.csv` has `target_gene` and may have `context` and `n_cells`; `manifest.json` beside it names
the contexts.
"""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from evae.common.messages import first_line, number_of
from evae.models.contract_evae import EvaeError

MAX_CELLS = 400_000
MAX_STORED = 4_750_000_000  # stored entries of the matrix
MAX_COUNTS = 1_000_000  # of a cell
CELLS_EACH = 400  # where pert_counts.csv has no n_cells
TARGET, CONTEXT, N_CELLS = "target_gene", "context", "n_cells"
_HEADERS = {"gene_name", "gene", "gene_symbol", "gene_names", "genes"}


@dataclass(frozen=True)
class EntryPlan:
    """What an entry must hold.

    Attributes:
        genes: its columns, in order.
        cells: (context, target gene) -> number of cells, in the order of its rows.
        fingerprint: of the list of perturbations, as `vcc submit` compares it.
        panel_id: of the phase of the challenge; None where no manifest names it.
    """

    genes: list[str]
    cells: dict[tuple[str, str], int]
    fingerprint: str
    panel_id: str | None

    @property
    def contexts(self) -> list[str]:
        """In the order of the rows."""
        return list(dict.fromkeys(context for context, _ in self.cells))

    @property
    def targets(self) -> list[str]:
        """All target genes."""
        return list(dict.fromkeys(target for _, target in self.cells))

    @property
    def n_cells(self) -> int:
        """Rows of the entry."""
        return sum(self.cells.values())


def read_plan(genes: str | Path, perts: str | Path, control: str, contexts: list[str] | None = None) -> EntryPlan:
    """Read the lists.

    Args:
        genes: gene_names.csv.
        perts: pert_counts.csv.
        control: label of the controls, which no entry holds; its rows are left out.
        contexts: those of the entry; taken from `perts`, else from the manifest beside it, if None.

    Raises:
        EvaeError: a list is empty, names something twice, lacks a column or a context, or asks for too many cells.
    """
    manifest = _manifest(Path(perts))
    table = _pert_counts(Path(perts), control)
    listed = list(dict.fromkeys(table[CONTEXT])) if CONTEXT in table else []
    wanted = contexts or [str(c) for c in manifest.get("contexts", [])] or listed
    if not wanted:
        raise EvaeError(f"{perts} names no context and no manifest.json stands beside it; give --contexts A,B,C.")
    if missing := [c for c in wanted if listed and c not in listed]:
        raise EvaeError(f"{perts} has no rows for context {', '.join(missing)}; it has {', '.join(listed)}.")
    cells: dict[tuple[str, str], int] = {}
    for context in wanted:
        rows = table[table[CONTEXT] == context] if listed else table
        twice = [name for name, n in Counter(rows[TARGET]).items() if n > 1]
        if twice:
            raise EvaeError(f"{perts} names {twice[0]} twice in context {context}; keep one row.")
        cells |= {(context, p): int(n) for p, n in zip(rows[TARGET], rows[N_CELLS], strict=True)}
    plan = EntryPlan(_gene_names(Path(genes)), cells, _fingerprint(table), manifest.get("panel_id"))
    if plan.n_cells > MAX_CELLS:
        raise EvaeError(
            f"{perts} asks for {number_of(plan.n_cells, 'cell')}; an entry may hold {MAX_CELLS:,}, so ask for fewer."
        )
    return plan


def _gene_names(path: Path) -> list[str]:
    column = _csv(path, header=None).iloc[:, 0].tolist()
    genes = [str(name) for name in (column[1:] if str(column[0]).strip().lower() in _HEADERS else column)]
    twice = [name for name, n in Counter(genes).items() if n > 1]
    if not genes or twice:
        what = f"names {twice[0]} twice" if twice else "names no gene"
        raise EvaeError(f"{path} {what}; take the challenge's own gene_names.csv.")
    return genes


def _pert_counts(path: Path, control: str) -> pd.DataFrame:
    table = _csv(path, header="infer")
    table.columns = [str(name).strip() for name in table.columns]
    if TARGET not in table:
        raise EvaeError(f"{path} has no column '{TARGET}'; it has {', '.join(table.columns)}.")
    for name in [name for name in (TARGET, CONTEXT) if name in table]:
        table[name] = table[name].fillna("").astype(str).str.strip()
    table = table[~table[TARGET].isin(["", control])]
    if table.empty:
        raise EvaeError(f"{path} names no perturbation; take the challenge's own pert_counts.csv.")
    if CONTEXT in table and (table[CONTEXT] == "").any():
        name = table[TARGET][table[CONTEXT] == ""].iloc[0]
        raise EvaeError(f"{path} names no context for {name}; fill the column '{CONTEXT}', or drop it.")
    numbers = pd.to_numeric(table.get(N_CELLS, pd.Series(CELLS_EACH, index=table.index)), errors="coerce")
    if not ((numbers >= 1) & (numbers % 1 == 0)).all():
        wrong = table[TARGET][~((numbers >= 1) & (numbers % 1 == 0))].iloc[0]
        raise EvaeError(f"{path} asks for no whole number of cells of {wrong}; give {N_CELLS} of at least 1.")
    return table.assign(**{N_CELLS: numbers.astype(int)})


def _csv(path: Path, header: str | None) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, header=header, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, UnicodeDecodeError) as error:  # pandas' parser errors are ValueErrors
        raise EvaeError(f"{path} is not a CSV file ({first_line(error)}); save it as one.") from error
    return table.replace("", None) if header else table


def _manifest(perts: Path) -> dict[str, Any]:
    try:
        content = json.loads((perts.parent / "manifest.json").read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _fingerprint(table: pd.DataFrame) -> str:
    return "sha256:" + hashlib.sha256("\n".join(sorted(set(table[TARGET]))).encode()).hexdigest()
