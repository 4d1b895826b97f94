"""Which genes change in predicted cells: fold changes over the controls, tested, and how sure the model is of each.

For every (cell type, perturbation) and gene the predicted cells are compared with the controls of the cell type: the
log2 fold change between the geometric means, as scanpy has it, a rank-sum test, and false discovery rates over the
genes. The test says what so many cells show, not whether the model is right: more predicted cells give smaller
p-values. The spread does: the standard deviation of the fold change over predictions from other prompts and seeds.
Where the checkpoint was calibrated, every pair also has the error to expect of its mean change; see `confidence`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.special import ndtri

from evae.common.messages import number_of
from evae.data.format import Pair
from evae.data.reading.anndata_counts import AnnDataCounts
from evae.data.reading.anndata_file import as_anndata
from evae.data.reading.labels import label_texts
from evae.data.reading.panel import over_panel
from evae.evaluation.cells.normalised import log1p_cp10k, mean_of
from evae.evaluation.metrics.differential import ControlRanks, differential_expression
from evae.inference.checkpoint import Checkpoint
from evae.inference.confidence import COLUMNS, distance_to, facts_of, moments, with_confidence
from evae.inference.library import CHOICES
from evae.inference.request import cell_type_labels, choose_controls
from evae.models.contract_evae import EvaeError

TINY = 1e-9  # added to both means, as scanpy does, so that a fold change is finite
LARGEST_SCORE = 37.0  # of a p-value that float64 cannot tell from 0
KEY = "rank_genes_groups"
READ_CELLS = 2_048  # controls read at once


@dataclass(frozen=True)
class Compared:
    """How predicted cells are compared with controls.

    Attributes:
        redraws: further predictions that tell the spread.
        key_added: place in `uns` of the predicted cells.
        cell_type_key, perturbation_key: obs columns of the controls; None for the first if they are of one type.
        control: their label; the model's if None.
        layer: of the controls' raw counts, or "raw"; X if None.
        sampling: options of `Pipeline.predict` for the redraws; of those that the predicted cells tell, the guidance
            scale and the source of the library sizes, theirs if left out.
    """

    redraws: int
    key_added: str
    cell_type_key: str | None = "cell_type"
    perturbation_key: str = "perturbation"
    control: str | None = None
    layer: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, redraws: int, key_added: str, options: Mapping[str, Any]) -> "Compared":
        """Those of `Pipeline.effects`: `options` are further fields, and options of `Pipeline.predict`."""
        if redraws < 0:
            raise EvaeError(f"redraws is {redraws}; give 0 or more.")
        own = {n: v for n, v in options.items() if n in cls.__dataclass_fields__ and n != "sampling"}
        return cls(redraws, key_added, sampling={n: v for n, v in options.items() if n not in own}, **own)


def effects_in(
    prior: Checkpoint, predict: Callable[..., ad.AnnData], predicted: ad.AnnData | str | Path,
    controls: ad.AnnData | str | Path, asked: Compared,
) -> pd.DataFrame:  # fmt: skip
    """See `Pipeline.effects`; `predict` draws cells as `Pipeline.predict`."""
    cells = as_anndata(predicted, "the predicted cells")
    for key in ("cell_type", "perturbation"):
        if key not in cells.obs:
            raise EvaeError(f"the predicted cells have no obs column '{key}'; give cells as `predict` returns them.")
    if cells.n_vars != len(prior.processor.genes):
        raise EvaeError(
            f"the predicted cells have {number_of(cells.n_vars, 'gene')}, {prior.name} {len(prior.processor.genes):,}; "
            "give cells that this model predicted."
        )
    keys = (asked.cell_type_key, asked.perturbation_key)
    given = as_anndata(controls, "the controls", asked.layer, keys)
    given = choose_controls(given, prior.processor, asked.perturbation_key, asked.control)
    facts = cells.uns.get("evae", {})
    how = {"progress": False} | _as_drawn(facts) | dict(asked.sampling)
    how |= {"cell_type_key": asked.cell_type_key, "perturbation_key": asked.perturbation_key, "control": asked.control}
    pairs = cells.obs.groupby(["cell_type", "perturbation"], observed=True, sort=False).size()
    numbers = {(str(kind), str(name)): int(n) for (kind, name), n in pairs.items() if n}
    seed = int(facts.get("seed", 0))
    others = [predict(given, n_cells=numbers, seed=seed + 1 + i, **how) for i in range(asked.redraws)]
    resting, measured = _over_panel(prior.processor, given, [kind for kind, _ in numbers], asked.cell_type_key)
    table = effects_of([draw[:, measured] for draw in (cells, *others)], resting[:, measured])
    table = table.merge(_confidence(prior.processor, cells, resting, measured), on=["cell_type", "perturbation"])
    if not isinstance(predicted, str | Path):
        predicted.uns[asked.key_added] = as_rank_genes_groups(table, str(prior.processor.control))
    return table


def _confidence(processor: Any, cells: ad.AnnData, resting: ad.AnnData, measured: np.ndarray) -> pd.DataFrame:
    """COLUMNS of every pair; NaN where the checkpoint was not calibrated."""
    calibration = processor.calibration
    drawn = Expression.of(cells, ["cell_type", "perturbation"])
    if not calibration:
        pairs = pd.DataFrame(list(drawn.rows), columns=["cell_type", "perturbation"])
        return pairs.assign(**dict.fromkeys(COLUMNS[:-1], np.nan), remark="not calibrated")
    controls = Expression.of(resting, ["cell_type"])
    bases, distance, change = {}, {}, {}
    for kind, rows in controls.rows.items():
        base, error = (part[measured] for part in moments(controls.values[rows]))
        bases[kind], distance[kind] = (base, error), distance_to(base, error, calibration["controls"], measured)
    for pair, rows in drawn.rows.items():
        mean, noise = (part[measured] for part in moments(drawn.values[rows]))
        change[pair] = mean - bases[pair[0]][0], noise + bases[pair[0]][1]
    facts = facts_of(change, distance, calibration["perturbations"])
    return with_confidence(facts, calibration)[["cell_type", "perturbation", *COLUMNS]]


def _as_drawn(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The options by which cells were predicted, as far as they tell."""
    origin = {"training cells": "training"}.get(facts.get("library_size_source", ""), facts.get("library_size_source"))
    how = {
        "library_size": origin if origin in CHOICES else None,
        "guidance_scale": facts.get("guidance_scale"),
        "effect_transfer": facts.get("effect_transfer", 0.0),
    }
    return {name: value for name, value in how.items() if value is not None}


def _over_panel(
    processor: Any, controls: ad.AnnData, kinds: list[str], key: str | None
) -> tuple[ad.AnnData, np.ndarray]:
    """The controls over the panel, with obs `cell_type`; and which genes of the panel they measure."""
    source = AnnDataCounts(controls)
    columns = processor.panel_index(source.gene_columns)
    blocks = [over_panel(counts, columns, len(processor.genes)) for _, counts in source.blocks(READ_CELLS)]
    labels = cell_type_labels(controls, list(dict.fromkeys(kinds)), key)
    obs = pd.DataFrame({"cell_type": label_texts(pd.Series(labels))}, index=controls.obs_names.astype(str))
    return ad.AnnData(sp.vstack(blocks, format="csr"), obs=obs), np.isin(np.arange(len(processor.genes)), columns)


@dataclass(frozen=True)
class Expression:
    """Cells by group, log1p CP10K over one panel.

    Attributes:
        values: (cells, genes).
        rows: group -> its cells.
    """

    values: sp.csr_matrix
    rows: dict[Any, np.ndarray]

    @classmethod
    def of(cls, cells: ad.AnnData, by: Sequence[str]) -> "Expression":
        """Raw counts, grouped by obs columns."""
        rows = cells.obs.groupby(list(by) if len(by) > 1 else by[0], observed=True, sort=False).indices
        return cls(log1p_cp10k(cells.X, "raw counts"), rows)

    def mean(self, group: Any) -> np.ndarray:
        """Geometric mean less 1 of every gene, (genes,)."""
        return np.expm1(mean_of(self.values[self.rows[group]]))

    def share(self, group: Any) -> np.ndarray:
        """Share of the cells that express each gene, 0 to 1, (genes,)."""
        rows = self.rows[group]
        return np.bincount(self.values[rows].indices, minlength=self.values.shape[1]) / len(rows)


def effects_of(draws: Sequence[ad.AnnData], controls: ad.AnnData) -> pd.DataFrame:
    """The table of effects, one row a (cell type, perturbation) and gene.

    Args:
        draws: predicted cells, raw counts, with obs `cell_type` and `perturbation`; the first is tested, and the
            others, of the same pairs, tell the spread.
        controls: raw counts over the same genes, with obs `cell_type`.

    Returns:
        DataFrame, the pairs in their order and the genes of each by p-value: `cell_type`, `perturbation`, `gene`,
        `log2_fold_change`, `p_value`, `fdr`, `score` (the p-value as a normal deviate with the sign of the change),
        `share` and `share_control` (of cells that express the gene), `spread` (NaN without further draws).

    Raises:
        EvaeError: a cell type without controls.
    """
    resting, predicted = Expression.of(controls, ["cell_type"]), Expression.of(draws[0], ["cell_type", "perturbation"])
    others = [Expression.of(draw, ["cell_type", "perturbation"]) for draw in draws[1:]]
    genes = np.array(draws[0].var_names, dtype=object)
    parts = []
    for kind in dict.fromkeys(kind for kind, _ in predicted.rows):
        if kind not in resting.rows:
            raise EvaeError(f"there are no controls of '{kind}' to compare its predicted cells with; give some.")
        names = [name for other, name in predicted.rows if other == kind]
        ranks = ControlRanks(resting.values[resting.rows[kind]])
        tested = differential_expression(_one_by_one(predicted, kind, names), ranks, genes)
        for row, name in enumerate(names):
            found = {"gene": genes, "p_value": tested.p_value[row], "fdr": tested.fdr[row]}
            parts.append(_rows(found, (kind, name), predicted, resting, others))
    return pd.concat(parts, ignore_index=True)


def _one_by_one(
    cells: Expression, kind: str, names: list[str]
) -> Iterator[tuple[list[str], sp.csr_matrix, np.ndarray]]:
    for name in names:
        rows = cells.rows[kind, name]
        yield [name], cells.values[rows], np.zeros(len(rows), dtype=np.int64)


def _rows(
    found: dict[str, np.ndarray], pair: Pair, predicted: Expression, resting: Expression, others: list[Expression]
) -> pd.DataFrame:
    """The genes of a pair, the surest first."""
    before = resting.mean(pair[0])
    folds = np.stack([np.log2((draw.mean(pair) + TINY) / (before + TINY)) for draw in (predicted, *others)])
    score = np.minimum(-ndtri(np.maximum(found["p_value"] / 2, 1e-300)), LARGEST_SCORE) * np.sign(folds[0])
    table = pd.DataFrame(
        {
            "cell_type": pair[0], "perturbation": pair[1], "gene": found["gene"], "log2_fold_change": folds[0],
            "p_value": found["p_value"], "fdr": found["fdr"], "score": score, "share": predicted.share(pair),
            "share_control": resting.share(pair[0]), "spread": folds.std(0, ddof=1) if others else np.nan,
        }
    )  # fmt: skip
    order = np.lexsort((-np.abs(folds[0]), found["p_value"]))
    return table.iloc[order]


def as_rank_genes_groups(table: pd.DataFrame, control: str) -> dict[str, Any]:
    """The table as scanpy keeps such results in `uns["rank_genes_groups"]`; the genes of a group by falling score.

    Groups are perturbations, with several cell types "CELL TYPE: PERTURBATION".
    """
    several = table["cell_type"].nunique() > 1
    columns = {  # place -> column of the table, type in scanpy
        "names": ("gene", object), "scores": ("score", "f4"), "pvals": ("p_value", "f8"), "pvals_adj": ("fdr", "f8"),
        "logfoldchanges": ("log2_fold_change", "f4"),
    }  # fmt: skip
    groups: dict[str, pd.DataFrame] = {}
    for (kind, name), rows in table.groupby(["cell_type", "perturbation"], observed=True, sort=False):
        groups[f"{kind}: {name}" if several else str(name)] = rows.sort_values("score", ascending=False, kind="stable")
    found: dict[str, Any] = {
        place: np.rec.fromarrays(
            [rows[column].to_numpy() for rows in groups.values()], dtype=[(name, kind) for name in groups]
        )
        for place, (column, kind) in columns.items()
    }
    genes = table["gene"].unique()
    for place, column in {"pts": "share", "pts_rest": "share_control"}.items():
        of_group = {name: rows.set_index("gene")[column].reindex(genes) for name, rows in groups.items()}
        found[place] = pd.DataFrame(of_group)
    found["params"] = {
        "groupby": "perturbation", "reference": control, "method": "wilcoxon", "use_raw": False, "layer": None,
        "corr_method": "benjamini-hochberg",
    }  # fmt: skip
    return found
