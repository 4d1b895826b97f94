"""Held-out pairs of a dataset, and their prediction. A pair is a (cell type, perturbation)."""

from collections.abc import Mapping, Sequence
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from evae.data.format import AnyDataset, Dataset, DatasetInfo, Pair
from evae.data.streaming.split_anndata import DatasetSplit
from evae.inference.pipeline import Pipeline
from evae.models.contract_evae import EvaeError, look_up

READ_BATCH = 2_048
STEADY, STEADY_IN_ALL = 500, 100_000  # cells


def held_out_cells(info: DatasetInfo) -> dict[Pair, int]:
    """Number of real test cells of every held-out pair, the control left out."""
    table = info.statistics["cell_counts"].get("test", {})
    return {(c, p): n for c, row in table.items() for p, n in row.items() if p != info.control}


def read_controls(dataset: AnyDataset, cell_types: Sequence[str]) -> ad.AnnData:
    """The training controls of some cell types, read block by block.

    Returns:
        AnnData of raw counts, CSR float32, with obs `perturbation` and `cell_type`, and the cells' own names.

    Raises:
        EvaeError: a cell type has no control in the training split.
    """
    split = DatasetSplit(dataset, "train")
    info, labels = split.info, split.labels()
    wanted = look_up(cell_types, info.cell_types, "cell type")
    kinds = labels["cell_type"].cat.codes.to_numpy()
    keep = (labels["perturbation"] == info.control).to_numpy() & np.isin(kinds, wanted)
    for kind, name in zip(wanted, cell_types, strict=True):
        if not (kinds[keep] == kind).any():
            raise EvaeError(
                f"{dataset} has no training control '{info.control}' of '{name}'; hold out a cell type that "
                "has controls."
            )
    starts = range(0, split.n_cells, READ_BATCH)
    blocks = [split.counts(i, min(i + READ_BATCH, split.n_cells))[keep[i : i + READ_BATCH]] for i in starts]
    obs = labels.loc[keep, ["perturbation", "cell_type"]].astype(str)
    return ad.AnnData(sp.vstack(blocks, format="csr", dtype=np.float32), obs=obs, var=pd.DataFrame(index=info.genes))


def dataset_cells(dataset: AnyDataset) -> dict[str, Any]:
    """What `evae.evaluation.evaluate` needs of a dataset folder: `real`, `train` and the name of the `control`.

    The cells are named, not read: `evaluate` reads them in blocks.
    """
    dataset = Dataset.open(dataset)
    train = DatasetSplit(dataset, "train")
    return {"real": DatasetSplit(dataset, "test"), "train": train, "control": train.info.control}


def predict_held_out(
    pipe: Pipeline,
    dataset: AnyDataset,
    n_cells: int | None = None,
    *,
    seed: int = 0,
    batch_size: int = 256,
    progress: bool = True,
    **sampling: Any,
) -> ad.AnnData:
    """Predicted cells of every held-out pair; library sizes from the training controls of its cell type.

    Args:
        pipe: a prior.
        dataset: the folder, Hub id or open `Dataset` whose `test` split is to be predicted; no held-out cell is read.
        n_cells: cells of each pair; if left out, `cells_to_draw`.
        seed, batch_size, progress, **sampling: as in `Pipeline.predict`.

    Raises:
        EvaeError: the dataset holds nothing out, or names what the model does not know.
    """
    dataset = Dataset.open(dataset)
    pairs = held_out_cells(dataset.info)
    if not pairs:
        raise EvaeError(f"{dataset} holds out no perturbed cells; prepare it with --split.")
    controls = read_controls(dataset, list(dict.fromkeys(c for c, _ in pairs)))
    return pipe.predict(
        controls,
        n_cells=cells_to_draw(pairs) if n_cells is None else dict.fromkeys(pairs, n_cells),
        control=dataset.info.control,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
        **sampling,
    )


def cells_to_draw(pairs: Mapping[Pair, int]) -> dict[Pair, int]:
    """How many cells to draw of every held-out pair: as many as are held out, and enough for a steady mean.

    The mean of few drawn cells is noisy, and an evaluation takes that noise for error. So a pair gets `STEADY` cells,
    fewer where that would make more than `STEADY_IN_ALL`.

    Args:
        pairs: number of held-out cells of every pair.
    """
    least = min(STEADY, STEADY_IN_ALL // len(pairs))
    return {pair: max(n, least) for pair, n in pairs.items()}
