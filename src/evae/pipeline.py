"""AnnData in, AnnData out: predict perturbed cells and embed cells with a trained checkpoint.

pipe = evae.pipeline("evae/replogle-ar")
predicted = pipe.predict(controls, perturbation="STAT1", n_cells=500)
pipe.embed(cells)                                      # adds obsm["X_evae"]
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from torch import Tensor

from evae.data.progress import progress_bar
from evae.embedding import embed_cells
from evae.loading import Checkpoint, load_checkpoint
from evae.models.contract_evae import EvaeError, look_up
from evae.models.processing_evae import ENSEMBL_COLUMNS
from evae.models.randomness_evae import CellStreams
from evae.prediction import (
    Pair,
    cell_type_labels,
    check_controls,
    listed,
    planned_cells,
    wanted_cell_types,
    whole_counts,
)

ENCODE_BATCH = 512


def pipeline(
    path_or_id: str | Path, device: str | torch.device | None = None, revision: str | None = None
) -> "Pipeline":
    """Load a checkpoint for use on AnnData.

    Args:
        path_or_id: a folder written by training, or a Hub id such as "evae/replogle-ar".
        device: where to compute; a GPU if there is one, else the CPU, if None.
        revision: branch, tag or commit of a Hub id.

    Returns:
        A `Pipeline`.

    Raises:
        EvaeError: nothing there, or a file that is missing or damaged; the message names it.
    """
    return Pipeline(load_checkpoint(path_or_id, revision), device)


class Pipeline:
    """A loaded checkpoint that reads and writes AnnData; made by `evae.pipeline`.

    Attributes:
        model: the tokenizer or the prior, in evaluation mode.
        processor: its `EvaeProcessor`: gene panel, vocabularies, control.
        device: where it computes.
    """

    def __init__(self, checkpoint: Checkpoint, device: str | torch.device | None = None):
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.checkpoint = checkpoint
        self.model = checkpoint.model.to(self.device)
        self.processor = checkpoint.processor

    def __repr__(self) -> str:
        p = self.processor
        return (
            f"Pipeline({self.checkpoint.name}: {type(self.model).__name__}, {len(p.genes):,} genes, "
            f"{len(p.perturbations):,} perturbations, {len(p.cell_types)} cell types, on {self.device})"
        )

    def predict(
        self,
        controls: ad.AnnData | None,
        perturbation: str | Sequence[str],
        cell_type: str | Sequence[str] | None = None,
        n_cells: int | None = None,
        *,
        seed: int = 0,
        batch_size: int = 256,
        cell_type_key: str | None = "cell_type",
        perturbation_key: str = "perturbation",
        layer: str | None = None,
        progress: bool = True,
        **sampling: Any,
    ) -> ad.AnnData:
        """Draw cells as they would be after a perturbation.

        Args:
            controls: unperturbed cells, raw counts. Every predicted cell takes the library size of one of the controls
                of its cell type (with repetition only if there are fewer controls than cells). None takes library
                sizes from the training cells; then give `cell_type` and `n_cells`.
            perturbation: one name or several.
            cell_type: one name or several. None predicts for every cell type in
                `controls.obs[cell_type_key]`; where controls have that column, only those of the given
                cell types are used.
            n_cells: cells for every pair of cell type and perturbation; as many as its cell type has controls if None.
            seed: the same seed (with the same inputs) gives the same cells, whatever the batch size.
            batch_size: cells drawn at once.
            cell_type_key: obs column of the controls' cell types; None if all are of the one `cell_type`.
            perturbation_key: obs column that, where the controls have it, must say that they are controls.
            layer: the layer of `controls` that holds raw counts; X if None.
            progress: show a progress bar.
            **sampling: options of the prior's `sample`, for example `guidance_scale=2`.

        Returns:
            AnnData. X: raw counts over the model's gene panel, CSR float32, (cells, genes). obs:
            `perturbation`, `cell_type`, `support` (what training saw of the pair: "seen together", "seen
            apart" or "unseen"), `library_size` (the total counts the cell was drawn for). uns["evae"]:
            model, seed, share of the panel that the controls cover, versions.

        Raises:
            EvaeError: the checkpoint is a tokenizer only, an unknown name, controls that are not raw counts
                or not controls, or too little gene coverage.
        """
        perturbations = listed(perturbation, "perturbation")
        look_up(perturbations, self.processor.perturbations, "perturbation")
        cell_types = wanted_cell_types(self.processor.cell_types, controls, cell_type, cell_type_key)
        if n_cells is not None and n_cells < 1:
            raise EvaeError(f"n_cells is {n_cells}; give at least 1.")
        if n_cells is None and controls is None:
            raise EvaeError("without controls, say how many cells to draw with n_cells.")
        counts = dict.fromkeys(cell_types, n_cells or 0)
        if controls is not None and n_cells is None:
            labels = cell_type_labels(controls, cell_types, cell_type_key)
            counts = {c: int((labels == c).sum()) for c in cell_types}
        return self.predict_pairs(
            controls,
            {(c, p): counts[c] for c in cell_types for p in perturbations},
            seed=seed, batch_size=batch_size, cell_type_key=cell_type_key,
            perturbation_key=perturbation_key, layer=layer, progress=progress, **sampling,
        )  # fmt: skip

    def predict_pairs(
        self,
        controls: ad.AnnData | None,
        n_cells: Mapping[Pair, int],
        *,
        seed: int = 0,
        batch_size: int = 256,
        cell_type_key: str | None = "cell_type",
        perturbation_key: str = "perturbation",
        layer: str | None = None,
        progress: bool = True,
        **sampling: Any,
    ) -> ad.AnnData:
        """Like `predict`, for chosen pairs: `n_cells` maps (cell type, perturbation) to a number of cells."""
        self._require_prior()
        if batch_size < 1:
            raise EvaeError(f"batch_size is {batch_size}; give at least 1.")
        if not n_cells:
            raise EvaeError("no (cell type, perturbation) pair was given; name at least one.")
        cell_types = list(dict.fromkeys(c for c, _ in n_cells))
        obs = planned_cells(n_cells, self.processor)
        rng = np.random.default_rng(seed)
        if controls is None:
            obs["library_size"] = self.processor.sample_library_size(len(obs), rng)
        else:
            check_controls(controls, self.processor, perturbation_key)
            labels = cell_type_labels(controls, cell_types, cell_type_key)
            used = np.flatnonzero(np.isin(labels, cell_types))
            sizes = self._library_sizes(controls[used], layer)
            pools = {c: sizes[labels[used] == c] for c in cell_types}
            draws = [rng.choice(pools[c], n, replace=n > len(pools[c])) for (c, _), n in n_cells.items()]
            obs["library_size"] = np.concatenate(draws)
        X = self._draw(obs, seed, batch_size, progress, sampling)
        facts: dict[str, Any] = {"seed": seed, "control": str(self.processor.control)}
        facts["library_size_source"] = "training cells" if controls is None else "controls"
        if controls is not None:
            facts["gene_coverage"] = self.gene_coverage(controls)
        return ad.AnnData(X=X, obs=obs, var=self._var(), uns={"evae": facts | self._provenance()})

    def embed(
        self,
        adata: ad.AnnData,
        kind: str = "latents",
        *,
        layer: str | None = None,
        key: str = "X_evae",
        progress: bool = True,
    ) -> ad.AnnData:
        """Embed cells with the tokenizer's encoder; the counts are read in chunks.

        Args:
            adata: cells of raw counts. As scverse functions do, this writes into it: `obsm[key]`, float32
                (cells, features), and `uns[key]` with the model, the kind and the gene coverage.
            kind: "latents" (before quantization, flattened), "pooled" (mean of the encoder's tokens) or
                "codes" (quantized latents, flattened).
            layer: the layer that holds raw counts; X if None.
            key: where to write.
            progress: show a progress bar.

        Returns:
            `adata` itself.

        Raises:
            EvaeError: counts that are not raw, cells without counts, too little gene coverage, unknown kind.
        """
        adata.obsm[key], facts = embed_cells(self.checkpoint, adata, kind, layer, self.device, progress)
        adata.uns[key] = facts
        return adata

    def reconstruct(
        self, adata: ad.AnnData, *, seed: int = 0, layer: str | None = None, progress: bool = True
    ) -> ad.AnnData:
        """Encode cells and draw them back from their codes: what the tokenizer alone keeps and loses.

        Args:
            adata: cells of raw counts.
            seed: of the draws from the output head.
            layer: the layer that holds raw counts; X if None.
            progress: show a progress bar.

        Returns:
            AnnData of the same cells and obs, raw counts over the gene panel. Unlike a prediction, each cell
            keeps its own library size.
        """
        tokenizer, generator = self.checkpoint.tokenizer, self._generator(seed)
        blocks = []
        with torch.inference_mode():
            for batch in self._batches(adata, layer, "reconstructing cells", progress):
                codes = tokenizer.encode(batch["counts"], batch["gene_ids"])
                counts = tokenizer.sample_counts(codes, batch["library_size"], generator)
                blocks.append(whole_counts(counts, generator))
        facts = {"seed": seed, "gene_coverage": self.gene_coverage(adata)} | self._provenance()
        X = sp.vstack(blocks, format="csr")
        return ad.AnnData(X=X, obs=adata.obs.copy(), var=self._var(), uns={"evae": facts})

    def gene_coverage(self, adata: ad.AnnData) -> float:
        """Share of the model's gene panel, 0 to 1, that `adata` measures."""
        column = next((c for c in ENSEMBL_COLUMNS if c in adata.var.columns), None)
        ids = [str(i) for i in adata.var[column]] if column else None
        return self.processor.coverage([str(g) for g in adata.var_names], ids)

    def _require_prior(self) -> None:
        if not self.checkpoint.is_prior:
            raise EvaeError(f"{self.checkpoint.name} is a tokenizer, which embeds but does not predict; give a prior.")

    def _library_sizes(self, controls: ad.AnnData, layer: str | None) -> np.ndarray:
        batches = self._batches(controls, layer, "reading controls", False)
        return np.concatenate([batch["library_size"].cpu().numpy() for batch in batches])

    def _draw(
        self, obs: pd.DataFrame, seed: int, batch_size: int, progress: bool, sampling: dict[str, Any]
    ) -> sp.csr_matrix:
        perturbations = torch.from_numpy(look_up(obs["perturbation"], self.processor.perturbations, "perturbation"))
        cell_types = torch.from_numpy(look_up(obs["cell_type"], self.processor.cell_types, "cell type"))
        library = torch.from_numpy(obs["library_size"].to_numpy(dtype=np.float32))
        streams, blocks = CellStreams.spawn(torch.Generator().manual_seed(seed), len(obs)), []
        with progress_bar(progress) as bar:
            advance = bar.start("predicting cells", len(obs))
            for start in range(0, len(obs), batch_size):
                rows = slice(start, start + batch_size)
                own = streams[rows]  # a stream a cell: cells do not depend on their batch
                counts = self.model.sample_cells(
                    perturbation_ids=perturbations[rows].to(self.device),
                    cell_type_ids=cell_types[rows].to(self.device),
                    library_size=library[rows].to(self.device),
                    generator=own,
                    **sampling,
                )
                blocks.append(whole_counts(counts, own))
                advance(len(counts))
        return sp.vstack(blocks, format="csr")

    def _batches(self, adata: ad.AnnData, layer: str | None, title: str, progress: bool) -> Iterator[dict[str, Tensor]]:
        """Sparse batches of all cells, in order, on the device."""
        if adata.n_obs == 0:
            raise EvaeError("there are no cells in the AnnData; give at least one.")
        with progress_bar(progress) as bar:
            advance = bar.start(title, adata.n_obs)
            for start in range(0, adata.n_obs, ENCODE_BATCH):
                cells = adata[start : start + ENCODE_BATCH]
                yield {k: v.to(self.device) for k, v in self.processor(cells, layer=layer).items()}
                advance(cells.n_obs)

    def _generator(self, seed: int) -> torch.Generator:
        return torch.Generator(device=self.device).manual_seed(seed)

    def _var(self) -> pd.DataFrame:
        ids = self.processor.ensembl_ids
        columns = {"ensembl_id": ids} if ids is not None else {}
        return pd.DataFrame(columns, index=pd.Index(self.processor.genes))

    def _provenance(self) -> dict[str, Any]:
        return self.checkpoint.provenance()
