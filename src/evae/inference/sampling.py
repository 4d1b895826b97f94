"""Draw the cells of a prediction: what the controls tell, and one random stream for every cell."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from torch import Tensor

from evae.common.progress import progress_bar
from evae.data.format import Pair
from evae.data.reading.anndata_counts import AnnDataCounts
from evae.data.reading.panel import over_panel
from evae.inference.checkpoint import Checkpoint
from evae.inference.request import whole_counts
from evae.models.contract_evae import look_up
from evae.models.randomness_evae import CellStreams

READ_BATCH = 512


@dataclass(frozen=True)
class ControlFacts:
    """What a prediction takes from control cells.

    Attributes:
        library_sizes: cell type -> total counts over the panel of its controls.
        contexts: cell type -> mean tokenizer embedding of its controls, (embedding,); empty where the prior knows
            cell types by name.
    """

    library_sizes: dict[str, np.ndarray]
    contexts: dict[str, Tensor]

    def draw_library_sizes(self, n_cells: Mapping[Pair, int], rng: np.random.Generator) -> np.ndarray:
        """One for every cell to draw, pair by pair; with repetition only where there are fewer controls than cells."""
        pools = self.library_sizes
        return np.concatenate([rng.choice(pools[c], n, replace=n > len(pools[c])) for (c, _), n in n_cells.items()])


def panel_batches(
    processor: Any,
    adata: ad.AnnData,
    *,
    layer: str | None,
    device: torch.device,
    title: str = "",
    progress: bool = False,
) -> Iterator[dict[str, Tensor]]:
    """Sparse batches of all cells, in order, on the device."""
    source = AnnDataCounts(adata, layer)
    columns = processor.panel_index(source.gene_columns)
    with progress_bar(progress) as bar:
        advance = bar.start(title, adata.n_obs)
        for _, counts in source.blocks(READ_BATCH):
            batch = processor(over_panel(counts, columns, len(processor.genes)))
            yield {name: values.to(device) for name, values in batch.items()}
            advance(counts.shape[0])


@torch.inference_mode()
def read_control_facts(
    checkpoint: Checkpoint, controls: ad.AnnData, labels: np.ndarray, *, layer: str | None, device: torch.device
) -> ControlFacts:
    """Library sizes, and contexts where the prior wants them, of controls whose cell types are `labels` (cells,)."""
    sizes, embedded = [], []
    for batch in panel_batches(checkpoint.processor, controls, layer=layer, device=device):
        sizes.append(batch["library_size"].cpu().numpy())
        if knows_by_context(checkpoint):
            embedded.append(checkpoint.tokenizer.embed(batch["counts"], batch["gene_ids"]).float().cpu())
    library_size = np.concatenate(sizes)
    rows = {str(name): np.flatnonzero(labels == name) for name in pd.unique(labels)}
    contexts = {name: torch.cat(embedded)[where].mean(0) for name, where in rows.items()} if embedded else {}
    return ControlFacts({name: library_size[where] for name, where in rows.items()}, contexts)


def knows_by_context(checkpoint: Checkpoint) -> bool:
    """Whether the prior knows a cell type by its control cells, and not by its name."""
    return bool(getattr(checkpoint.model.config, "cell_type_context", False))


def draw_cells(
    checkpoint: Checkpoint,
    obs: pd.DataFrame,
    contexts: Mapping[str, Tensor],
    *,
    seed: int,
    batch_size: int,
    device: torch.device,
    progress: bool,
    sampling: Mapping[str, Any],
) -> sp.csr_matrix:
    """Raw counts (cells, genes) of the cells that `obs` plans; see `Pipeline.predict`.

    Raises:
        EvaeError: a perturbation or a cell type that the prior was not trained for.
    """
    processor = checkpoint.processor
    asked: dict[str, Tensor] = {"perturbation_ids": processor.perturbation_ids(obs["perturbation"].tolist())}
    names = [str(name) for name in obs["cell_type"].cat.categories]
    which = torch.from_numpy(obs["cell_type"].cat.codes.to_numpy(dtype=np.int64))
    if contexts:
        asked["context"] = torch.stack([contexts[name] for name in names])[which]
    else:
        asked["cell_type_ids"] = torch.from_numpy(look_up(names, processor.cell_types, "cell type"))[which]
    asked["library_size"] = torch.from_numpy(obs["library_size"].to_numpy(dtype=np.float32))
    streams, blocks = CellStreams.spawn(torch.Generator().manual_seed(seed), len(obs)), []
    with progress_bar(progress) as bar:
        advance = bar.start("predicting cells", len(obs))
        for start in range(0, len(obs), batch_size):
            rows = slice(start, start + batch_size)
            own = streams[rows]  # a stream a cell: cells do not depend on their batch
            conditions = {name: values[rows].to(device) for name, values in asked.items()}
            counts = checkpoint.model.sample_cells(**conditions, generator=own, **sampling)
            blocks.append(whole_counts(counts, own))
            advance(len(counts))
    return sp.vstack(blocks, format="csr")
