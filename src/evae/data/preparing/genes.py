"""The gene panel of a dataset: all shared genes, a panel file, or the highly variable ones.

Genes match by Ensembl id where both sides have one, else by symbol, else by alias if a table of aliases is given. A
gene that a file does not measure leaves the panel: zeros are never invented. Too little coverage of the panel raises.
"""

import csv
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evae.common.messages import number_of
from evae.data.reading.file_counts import FileCounts
from evae.models.contract_evae import EvaeError, check_unique
from evae.models.genes_evae import GeneColumns, case_hint, ensembl_id, match_genes

OF_MODEL = "preprocessor_config.json"  # holds the panel of a trained model
SHOWN = 100  # absent genes named in the report


@dataclass(frozen=True)
class Panel:
    """Genes, their Ensembl ids ("" where unknown), and where each of them stands in every source file."""

    genes: list[str]
    ensembl_ids: list[str]
    positions: list[np.ndarray]  # per file (genes,) int64
    matches: list[dict[str, Any]]  # per file, how many of the wanted genes were found by what, which are absent

    def coverage(self, source: int) -> float:
        """The share of the wanted genes that a file measures."""
        found = self.matches[source]
        n = found["by_symbol"] + found["by_ensembl_id"] + found["by_alias"]
        return n / (n + found["absent"])

    def take(self, chosen: np.ndarray) -> "Panel":
        """The sub-panel of the given indices, in the given order."""
        return Panel(
            genes=[self.genes[i] for i in chosen],
            ensembl_ids=[self.ensembl_ids[i] for i in chosen],
            positions=[p[chosen] for p in self.positions],
            matches=self.matches,
        )


def parse_genes(genes: str | Path) -> tuple[int | None, list[str] | None]:
    """Read the `genes` argument: (number of highly variable genes or None, panel or None).

    Args:
        genes: "all", "hvg:2000", or what `read_panel` reads.
    """
    text = str(genes)
    if text == "all":
        return None, None
    if text.startswith("hvg:"):
        count = text.partition(":")[2]
        if not count.isdigit() or int(count) < 1:
            raise EvaeError(f"'{text}' names no number of genes; write for example hvg:2000.")
        return int(count), None
    return None, read_panel(text)


def read_panel(path: str | Path) -> list[str]:
    """Gene names from a text file (one a line, # skipped), JSON (a list, or key `genes`), a dataset or model folder."""
    path = Path(path)
    if (path / OF_MODEL).is_file():
        path = path / OF_MODEL
    table = path / "genes.parquet" if path.is_dir() else path
    if not table.is_file():
        raise EvaeError(
            f"'{path}' is neither 'all', 'hvg:N', nor a panel file, a dataset folder or a model folder that exists."
        )
    if table.suffix == ".parquet":
        return _dataset_panel(table)
    try:
        text = path.read_text()
    except UnicodeDecodeError:
        raise EvaeError(f"panel file {path} is no text; write one gene a line, or name a dataset folder.") from None
    if path.suffix == ".json" or text.lstrip().startswith(("{", "[")):
        try:
            content: Any = json.loads(text)
        except json.JSONDecodeError as error:
            raise EvaeError(f"panel file {path} is not JSON ({error}).") from None
        names = content.get("genes") if isinstance(content, dict) else content
        if not isinstance(names, list):
            raise EvaeError(f"panel file {path} has no list under the key 'genes'.")
        panel = [str(n) for n in names]
    else:
        panel = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not panel:
        raise EvaeError(f"panel file {path} names no genes.")
    try:
        check_unique(panel, "gene")
    except EvaeError as error:
        raise EvaeError(f"panel file {path}: {error}") from None
    return panel


def _dataset_panel(table: Path) -> list[str]:
    """The panel of a dataset folder: symbols, and the Ensembl id of a gene that shares its symbol."""
    try:
        columns = pq.read_table(table, columns=["symbol", "ensembl_id"]).to_pydict()
    except (pa.ArrowInvalid, KeyError):
        raise EvaeError(f"{table} is not the genes.parquet of a dataset folder.") from None
    shared = {symbol for symbol, times in Counter(columns["symbol"]).items() if times > 1}
    return [e if s in shared and e else s for s, e in zip(columns["symbol"], columns["ensembl_id"], strict=True)]


def read_aliases(path: str | Path) -> dict[str, str]:
    """Other names of genes, alias -> symbol, from a tab-separated table with a header.

    Reads HGNC's complete set (columns `symbol`, `alias_symbol`, `prev_symbol`, several names between bars) and any
    table with a column `symbol` and one of the other two. An alias of two genes, or one that is itself a symbol,
    says nothing and is left out.
    """
    path = Path(path)
    if not path.is_file():
        raise EvaeError(f"no such file of gene aliases: {path}")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    columns = {"alias_symbol", "prev_symbol"} & set(rows[0] if rows else ())
    if not columns or "symbol" not in rows[0]:
        raise EvaeError(f"{path} needs tab-separated columns 'symbol' and 'alias_symbol' or 'prev_symbol'.")
    meant: dict[str, set[str]] = {}
    for row in rows:
        for column in columns:
            for alias in (row[column] or "").strip('"').split("|"):
                meant.setdefault(alias.strip(), set()).add(row["symbol"])
    symbols = {row["symbol"] for row in rows}
    return {a: s for a, (s, *more) in ((a, sorted(s)) for a, s in meant.items()) if a and not more and a not in symbols}


def match_panel(
    sources: Sequence[FileCounts], wanted: list[str] | None, min_coverage: float, aliases: str | Path | None = None
) -> Panel:
    """Align the files to one panel: the wanted genes, else the first file's, as far as all files have them.

    Args:
        sources: the files.
        wanted: a panel, or None.
        min_coverage: the least share of it that a file must measure.
        aliases: a table for `read_aliases`; used for genes that match neither by Ensembl id nor by symbol.

    Raises:
        EvaeError: a file measures less than `min_coverage` of the genes, or a symbol of the panel is that of several
            genes of a file.
    """
    first = sources[0]
    if wanted is None:
        genes, ids = first.genes, first.gene_columns.ensembl_ids
    else:
        genes, ids = wanted, [ensembl_id(name) for name in wanted]
        for source in sources:  # a symbol that is ambiguous in any file is refused, whatever the order of the files
            match_genes(GeneColumns.of_panel(genes), source.gene_columns, str(source.path))
    other_names = read_aliases(aliases) if aliases is not None else {}
    matched = []
    for source in sources:
        position, report = _match(GeneColumns.of_panel(genes, ids), source, other_names)
        matched.append((position, report))
        known = [*source.gene_columns.ensembl_ids, ""]  # -1, an absent gene, has none
        ids = [i or known[p] for i, p in zip(ids, position.tolist(), strict=True)]
    positions = [p for p, _ in matched]
    origin = "the panel" if wanted is not None else f"the genes of {first.path}"
    for source, position in zip(sources, positions, strict=True):
        share = float((position >= 0).mean())
        if share < min_coverage:
            raise EvaeError(
                f"{source.path} measures only {share:.0%} of {origin} ({number_of(len(genes), 'gene')}), below "
                f"{min_coverage:.0%}; check gene names and species, give another panel, or lower "
                f"min_coverage.{case_hint([genes[g] for g in np.flatnonzero(position < 0)], source.gene_columns)}"
            )
    shared = np.flatnonzero(np.all([p >= 0 for p in positions], axis=0))
    if not len(shared):
        raise EvaeError("the files share no gene; check that they use the same gene names.")
    panel = Panel(list(genes), ids, positions, [report for _, report in matched]).take(shared)
    for source, position in zip(sources, panel.positions, strict=True):
        if len(np.unique(position)) < len(position):
            raise EvaeError(f"two genes of the panel are the same gene in {source.path}; name each gene once.")
    return panel


def _match(panel: GeneColumns, source: FileCounts, aliases: dict[str, str]) -> tuple[np.ndarray, dict[str, Any]]:
    """Where each gene stands in a file, -1 where it is absent, and by what it was found."""
    genes, symbols = panel.names, source.gene_columns.symbols
    position = match_genes(panel, source.gene_columns, str(source.path))
    by_symbol = sum(p >= 0 and symbols[p] == gene for gene, p in zip(genes, position.tolist(), strict=True))
    by_id = int((position >= 0).sum()) - by_symbol
    by_alias = 0
    if aliases:
        taken = set(position.tolist())
        known = {aliases.get(n, n): i for i, n in enumerate(source.genes) if i not in taken}
        for g in np.flatnonzero(position < 0).tolist():
            found = known.get(aliases.get(genes[g], genes[g]), -1)
            if found >= 0 and not (panel.ensembl_ids[g] and source.gene_columns.ensembl_ids[found]):
                position[g] = found
                by_alias += 1
    absent = [genes[g] for g in np.flatnonzero(position < 0)]
    by = {"by_symbol": by_symbol, "by_ensembl_id": by_id, "by_alias": by_alias}
    return position, {**by, "absent": len(absent), "absent_genes": absent[:SHOWN]}
