"""Gene matching: symbols and Ensembl ids of a table of genes, and the columns of a panel's genes in it.

This is a part of the input contract. Everything that reads a user's genes calls `gene_columns`: preparing, predicting,
embedding, evaluating and reversion, from a file or an AnnData. So all of them find the same genes in the same cells.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .contract_evae import EvaeError, number_of

# Column names are compared without case, spaces and punctuation: "Ensembl_ID" is "ensemblid".
SYMBOL_COLUMNS = (
    *("genesymbol", "genesymbols", "symbol", "symbols", "genename", "genenames", "featurename", "featurenames"),
    *("hgncsymbol", "mgisymbol", "externalgenename", "geneshortname", "gene", "genes", "index"),
)
ENSEMBL_COLUMNS = (
    *("ensemblid", "ensemblids", "ensemblgeneid", "ensemblgeneids", "ensembl", "geneid", "geneids"),
    *("featureid", "featureids", "accession", "index"),
)
MISSING = {"", "nan", "NaN", "None", "<NA>"}  # missing values as text
ENSEMBL = re.compile(r"((?:ENS[A-Z]*|FBgn|WBGene)\d{6,})(?:\.\d+)?(_PAR_Y)?")  # of fly and worm, Ensembl keeps theirs
SHOWN = 3  # number of genes named in a message


@dataclass(frozen=True)
class GeneColumns:
    """Genes in the order of the columns of a count matrix, as `gene_columns` reads them.

    Attributes:
        symbols: "" where unknown; two genes may share one.
        ensembl_ids: without version; "" where unknown, or where two genes have the same.
        names: unique names: the symbol, or the Ensembl id of a gene that has no symbol or shares it.
    """

    symbols: list[str]
    ensembl_ids: list[str]
    names: list[str]

    @classmethod
    def of_panel(cls, names: Sequence[str], ensembl_ids: Sequence[str] | None = None) -> "GeneColumns":
        """The genes of a panel, whose names are unique already; a name may be an Ensembl id itself."""
        given = ensembl_ids if ensembl_ids is not None and len(ensembl_ids) else [""] * len(names)
        names = [str(n) for n in names]
        ids = [ensembl_id(i) or ensembl_id(n) for i, n in zip(given, names, strict=True)]
        return cls(names, _without_repeated(ids), names)

    def __len__(self) -> int:
        return len(self.names)


def ensembl_id(text: Any) -> str:
    """The Ensembl id that a text is, without its version (`ENSG00000115415.3`); "" if it is none."""
    found = ENSEMBL.fullmatch(str(text).strip())
    return found[1] + (found[2] or "") if found else ""


def gene_columns(
    index: Iterable[Any], columns: Mapping[str, Iterable[Any]] | Any = None, source: str = "the data"
) -> GeneColumns:
    """Symbols and Ensembl ids of genes, from the index of `var` or its known columns.

    * An index entry that is an Ensembl id is the gene's id; any other entry is its symbol. An index of integers is
      ignored.
    * What the index lacks is taken from columns, the first that has it: symbols from `SYMBOL_COLUMNS` (gene_symbol,
      symbol, gene_name, feature_name, ...), ids from `ENSEMBL_COLUMNS` (ensembl_id, gene_ids, feature_id, ...).
      `Gene Symbol`, `gene_symbol` and `gene.symbol` are the same column name.
    * NaN, None, "" and the text "nan" are missing values.
    * Versions of ids are removed. An id that two genes share cannot tell them apart, so it counts as missing.
    * A gene's name is its symbol. It is the id if the gene has no symbol or another gene has the same symbol.

    Args:
        index: `adata.var_names`, or the same of another format.
        columns: `adata.var`, or any mapping from column name to values, (genes,) each; only known columns are read.
        source: what to call the data in messages, for example a file.

    Raises:
        EvaeError: the genes are numbered and no known column names them, a gene has no name at all, or two genes
            have the same symbol and no ids that tell them apart.
    """
    entries = [_text(entry) for entry in index]
    numbered = all(entry.isdigit() for entry in entries)
    ids = [ensembl_id(entry) for entry in entries]
    symbols = ["" if numbered or i else entry for entry, i in zip(entries, ids, strict=True)]
    known = {_plain(name): name for name in (columns if columns is not None else ())}
    for name in (known[c] for c in SYMBOL_COLUMNS if c in known):
        if all(symbols):
            break
        symbols = [s or _symbol(_text(value)) for s, value in zip(symbols, columns[name], strict=True)]
    for name in (known[c] for c in dict.fromkeys((*ENSEMBL_COLUMNS, *SYMBOL_COLUMNS)) if c in known):
        if all(ids):
            break
        ids = [i or ensembl_id(_text(value)) for i, value in zip(ids, columns[name], strict=True)]
    if numbered and entries and not any(symbols) and not any(ids):
        raise EvaeError(
            f"the genes of {source} are only numbered ({', '.join(entries[:SHOWN])}, ...); put gene symbols or Ensembl "
            "ids into var_names, or into a column such as var['gene_symbol'] or var['ensembl_id']."
        )
    return GeneColumns(symbols, _without_repeated(ids), _names(symbols, ids, source))


def match_genes(panel: GeneColumns, given: GeneColumns, source: str = "the data") -> np.ndarray:
    """Index of each gene of the panel among the given genes, int64 (panel,), -1 if it is absent.

    Genes match by Ensembl id if both have one, else by symbol.

    Args:
        panel: the genes to find; their `names` are used as symbols.
        given: the genes of a file or an AnnData.
        source: what to call these in messages.

    Raises:
        EvaeError: a symbol of the panel matches several given genes; or two genes of the panel match the same given
            gene.
    """
    by_id = {i: g for g, i in enumerate(given.ensembl_ids) if i}
    by_symbol: dict[str, list[int]] = {}
    for g, symbol in enumerate(given.symbols):
        by_symbol.setdefault(symbol, []).append(g)
    by_symbol.pop("", None)
    position = np.full(len(panel), -1, dtype=np.int64)
    ambiguous = []
    for g, (name, own) in enumerate(zip(panel.names, panel.ensembl_ids, strict=True)):
        if own in by_id:
            position[g] = by_id[own]
            continue
        found = [other for other in by_symbol.get(name, ()) if not (own and given.ensembl_ids[other])]
        if len(found) > 1:
            ambiguous.append(f"{name} ({', '.join(given.names[other] for other in found)})")
        elif found:
            position[g] = found[0]
    if ambiguous:
        raise EvaeError(
            f"{number_of(len(ambiguous), 'symbol of the panel stands', 'symbols of the panel stand')} for several "
            f"genes of {source}: {', '.join(ambiguous[:8])}; "
            "name these genes by their Ensembl ids in the panel, or keep one of each."
        )
    _check_one_each(panel.names, position, source)
    return position


def case_hint(missing: Sequence[str], columns: GeneColumns) -> str:
    """A sentence on missing genes that differ only in case, as mouse and human symbols do; "" if there are none."""
    given = {symbol.lower(): symbol for symbol in columns.symbols}
    pairs = [(gene, given[gene.lower()]) for gene in missing if gene.lower() in given]
    if not pairs:
        return ""
    return (
        f" {number_of(len(pairs), 'of the missing genes differs', 'of the missing genes differ')} in upper and lower "
        f"case only ('{pairs[0][1]}' for '{pairs[0][0]}'): mouse genes are written otherwise than human ones."
    )


def _check_one_each(names: Sequence[str], position: np.ndarray, source: str) -> None:
    places, counts = np.unique(position[position >= 0], return_counts=True)
    if (counts > 1).any():
        same = [names[g] for g in np.flatnonzero(position == places[counts > 1][0]).tolist()]
        raise EvaeError(f"'{same[0]}' and '{same[1]}' of the panel are the same gene in {source}; name each gene once.")


def _names(symbols: list[str], ids: list[str], source: str) -> list[str]:
    n_symbol, n_id = Counter(symbols), Counter(ids)
    names = []
    twice: set[str] = set()
    for g, (symbol, own) in enumerate(zip(symbols, ids, strict=True)):
        if not symbol and not own:
            raise EvaeError(
                f"gene {g} of {source} (counted from 0) has neither a symbol nor an Ensembl id; name it, or leave it "
                "out: adata[:, adata.var_names != '']."
            )
        if symbol and n_symbol[symbol] == 1:
            names.append(symbol)
        else:
            names.append(own)
            if n_id[own] > 1 or not own:
                twice.add(symbol or own)
    if twice:
        shown = ", ".join(f"'{name}'" for name in sorted(twice)[:SHOWN])
        raise EvaeError(
            f"{source}: {number_of(len(twice), 'gene stands', 'genes stand')} more than once ({shown}) and no Ensembl "
            "ids tell them apart; make the names unique first, for example with adata.var_names_make_unique(), or give "
            "var['ensembl_id']."
        )
    return names


def _text(value: Any) -> str:
    text = (value.decode() if isinstance(value, bytes) else str(value)).strip()
    return "" if text in MISSING else text


def _symbol(text: str) -> str:
    """The text, unless it is an id or a number."""
    return "" if text.isdigit() or ensembl_id(text) else text


def _plain(column: Any) -> str:
    return re.sub(r"[^a-z0-9]", "", str(column).lower())


def _without_repeated(ids: list[str]) -> list[str]:
    counts = Counter(ids)
    return [i if counts[i] == 1 else "" for i in ids]
