"""Effects of perturbations that the user knows: a table of log fold changes, carried over to the tokenizer's latents.

A table comes from another screen, another model or a regression on features. With it a perturbation can be asked for
that training never saw. Its log fold changes are imposed on the user's own controls, as counts: molecules of genes that
fall are thinned, and to genes that rise molecules are added, such that the mean profile changes by the given folds. The
effect told to the prior is the mean shift of the latents from the controls to these cells.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from evae.data.format import Pair
from evae.inference.checkpoint import Checkpoint
from evae.inference.sampling import ControlFacts, panel_batches
from evae.inference.tables import read_texts, unreadable
from evae.models.coders_evae import to_dense
from evae.models.contract_evae import EvaeError, near_matches
from evae.models.genes_evae import gene_columns

MOST_CONTROLS = 500  # on which an effect is imposed
LARGEST = 10.0  # log2 fold change that is believed


def log_fold_changes(given: Any, processor: Any) -> dict[str, np.ndarray]:
    """Perturbation -> log2 fold changes over the panel, float64 (genes,), 0 where the table has no such gene.

    Args:
        given: a DataFrame of log2 fold changes, or the path of a csv, tsv or parquet file with names in the first
            column. Genes are the rows or the columns, whichever the panel knows; the other axis is perturbations.
        processor: the checkpoint's.

    Raises:
        EvaeError: no such file, no numbers, or no gene of the panel on either axis.
    """
    table = given if isinstance(given, pd.DataFrame) else read_table(Path(given))
    for axis in table.axes:
        if axis.has_duplicates:
            raise EvaeError(f"the effects name '{axis[axis.duplicated()][0]}' twice; make their names unique.")
    by_row, by_column = (processor.gene_positions(gene_columns([str(n) for n in axis], {})) for axis in table.axes)
    if (by_row >= 0).sum() >= (by_column >= 0).sum():
        table, by_column = table.T, by_row
    found = by_column >= 0
    if not found.any():
        raise EvaeError(
            "the effects name no gene of the model's panel; give log2 fold changes with gene names as rows or columns. "
            + near_matches(str(table.columns[0]), list(processor.genes))
        )
    values = table.to_numpy(dtype=np.float64, na_value=0.0)
    if not np.isfinite(values).all() or np.abs(values).max(initial=0) > LARGEST:
        raise EvaeError(f"the effects hold values beyond +-{LARGEST:g}; give log2 fold changes.")
    folds = np.zeros((len(values), len(found)))
    folds[:, found] = values[:, by_column[found]]
    return dict(zip(map(str, table.index), folds, strict=True))


def read_table(path: Path) -> pd.DataFrame:
    """A table of log2 fold changes, with the names in the first column as its index."""
    table = read_texts(path, "the effects")
    try:
        table = table.set_index(table.columns[0])
        return table if path.suffix == ".parquet" else table.astype(float)
    except (ValueError, IndexError) as error:
        raise unreadable(path, "the effects", error) from None


def effects_on_controls(
    checkpoint: Checkpoint,
    controls: ad.AnnData,
    found: ControlFacts,
    folds: Mapping[str, np.ndarray],
    pairs: Iterable[Pair],
    *,
    device: torch.device,
    seed: int,
) -> dict[Pair, Tensor]:
    """The shift of the latents for each (cell type, perturbation) whose fold changes are known.

    Args:
        checkpoint: a prior with `condition_on_effect`.
        controls: the cells that `found` was read from.
        found: their rows by cell type.
        folds: from `log_fold_changes`.
        pairs: those to predict; others than the perturbations of `folds` are left out.
        device, seed: as in `Pipeline.predict`.
    """
    shifts: dict[Pair, Tensor] = {}
    read: dict[str, tuple[Tensor, Tensor]] = {}  # counts and mean latents of a cell type's controls
    for cell_type, name in pairs:
        if name not in folds:
            continue
        if cell_type not in read:
            rows = found.rows[cell_type][:MOST_CONTROLS]
            batches = panel_batches(checkpoint.processor, controls[rows], device=device)
            n_genes = len(checkpoint.processor.genes)
            counts = torch.cat([to_dense(b["counts"], b["gene_ids"], n_genes) for b in batches])
            assert found.latents is not None  # read wherever the prior takes effects
            read[cell_type] = counts, found.latents[rows].flatten(1).mean(0)
        shifts[cell_type, name] = shift_of_latents(checkpoint.tokenizer, *read[cell_type], folds[name], seed)
    return shifts


@torch.inference_mode()
def shift_of_latents(tokenizer: Any, counts: Tensor, latents: Tensor, folds: np.ndarray, seed: int) -> Tensor:
    """Mean shift of the latents of controls, (latents * latent_width,), when log2 fold changes are imposed on them.

    Args:
        tokenizer: the frozen tokenizer.
        counts: raw counts of controls over the panel, (cells, genes).
        latents: mean latents of the controls as they are, (latents * latent_width,).
        folds: log2 fold changes over the panel, (genes,).
        seed: of the molecules that are taken and added.
    """
    generator = torch.Generator().manual_seed(seed)
    before = counts.cpu().double()
    profile = before.sum(0) / before.sum()
    wanted = profile * torch.from_numpy(2.0**folds)
    ratio = wanted / wanted.sum() / profile.clamp_min(1e-12)
    kept = torch.binomial(before, ratio.clamp_max(1).expand_as(before).contiguous(), generator=generator)
    more = (ratio - 1).clamp_min(0) * profile * before.sum(1, keepdim=True)
    after = kept + torch.poisson(more, generator=generator)
    changed = tokenizer.tokens_and_latents(after.to(counts))[1].float().flatten(1).mean(0)
    return changed.cpu() - latents
