"""Embed cells with the frozen encoder in a stream: no more than a few thousand cells are ever in memory.

Three embeddings of a cell: the latents before quantization, flattened (the published default); the mean of the
encoder's tokens ("pooled"); the quantized latents, flattened ("codes").
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np
import scipy.sparse as sp
import torch

from evae.common.messages import number_of
from evae.common.prefetch import prefetch
from evae.common.progress import Advance, no_progress, progress_bar
from evae.data.reading.anndata_counts import AnnDataCounts, Counts
from evae.data.reading.anndata_file import as_anndata
from evae.data.reading.panel import over_panel
from evae.inference.checkpoint import Checkpoint
from evae.inference.devices import choose_device
from evae.models.contract_evae import EvaeError
from evae.models.genes_evae import gene_columns

KINDS = ("latents", "pooled", "codes")
FULL_ENOUGH = 0.9  # of the gene panel
BATCH_CELLS = 512  # cells encoded at once
BLOCK_CELLS = 4_096  # cells read at once


@dataclass(frozen=True)
class CellEncoder:
    """The frozen encoder, aligned to the genes of one source of cells.

    Attributes:
        checkpoint: the tokenizer, or the prior that holds it.
        kind: "latents", "pooled" or "codes".
        columns: place in the model's panel of every gene of the source, int64 (genes,), -1 where it has none.
        coverage: share of the panel, 0 to 1, that the source measures.
        device: where to compute.
    """

    checkpoint: Checkpoint
    kind: str
    columns: np.ndarray
    coverage: float
    device: torch.device

    @classmethod
    def align(
        cls, checkpoint: Checkpoint, source: Counts, kind: str = "latents", device: str | torch.device | None = None
    ) -> "CellEncoder":
        """Match the genes of a source to the model's panel.

        Args:
            device: a GPU if there is one, else the CPU, if None. The model is moved there.

        Raises:
            EvaeError: unknown kind, or too few genes of the panel in the source.
        """
        if kind not in KINDS:
            raise EvaeError(f"embedding '{kind}' does not exist; choose {', '.join(KINDS[:-1])} or {KINDS[-1]}.")
        place = choose_device(device)
        processor = checkpoint.processor
        columns = processor.panel_index(source.gene_columns)
        coverage = float((columns >= 0).sum() / len(processor.genes))
        checkpoint.model.to(place).eval()
        return cls(checkpoint, kind, columns, coverage, place)

    @property
    def width(self) -> int:
        """Numbers of one embedded cell."""
        config = self.checkpoint.tokenizer.config
        return int(config.hidden_size if self.kind == "pooled" else config.n_latents * config.latent_width)

    def blocks(
        self, source: Counts, start: int = 0, stop: int | None = None, advance: Advance = no_progress
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Pairs (index of the first cell, embeddings (block, width) float32) of the cells start..stop, in order.

        A cell without any count over the panel has no embedding: its row is NaN. The next block is read while this
        one is encoded.
        """
        for first, counts in prefetch(source.blocks(BLOCK_CELLS, start, stop), 1):
            yield first, self.encode(counts)
            advance(counts.shape[0])

    def encode(self, counts: sp.csr_matrix) -> np.ndarray:
        """Embeddings, float32 (cells, width), of raw counts over the source's genes; NaN rows where all are zero."""
        panel = over_panel(counts, self.columns, len(self.checkpoint.processor.genes))
        embedded = np.full((panel.shape[0], self.width), np.nan, dtype=np.float32)
        full = np.flatnonzero(np.diff(panel.indptr) > 0)
        tokenizer, processor = self.checkpoint.tokenizer, self.checkpoint.processor
        with torch.inference_mode():
            for low in range(0, len(full), BATCH_CELLS):
                rows = full[low : low + BATCH_CELLS]
                batch: Any = processor(panel[rows])
                inputs = [batch[name].to(self.device) for name in ("counts", "gene_ids")]
                embedded[rows] = tokenizer.embed(*inputs, self.kind).float().cpu().numpy()
        return embedded

    def facts(self) -> dict[str, Any]:
        """What the numbers are and where they come from, for results to carry."""
        return {"kind": self.kind, "gene_coverage": self.coverage} | self.checkpoint.provenance()


def embed_cells(
    checkpoint: Checkpoint,
    adata: ad.AnnData,
    kind: str,
    layer: str | None,
    device: str | torch.device | None,
    progress: bool,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Embeddings of all cells of an AnnData, float32 (cells, width), and what they are.

    Raises:
        EvaeError: counts that are not raw, cells without counts, too little gene coverage, unknown kind, or cells that
            cannot be written into.
    """
    if as_anndata(adata, "the cells") is not adata:
        raise EvaeError(
            "embed writes into the cells, which it cannot into a file or a part of a backed AnnData; give cells in "
            "memory (adata.to_memory()), or embed a file with `evae embed`."
        )
    source = AnnDataCounts(adata, layer)
    encoder = CellEncoder.align(checkpoint, source, kind, device)
    with progress_bar(progress) as bar:
        advance = bar.start("embedding cells", adata.n_obs)
        embedded = np.concatenate([values for _, values in encoder.blocks(source, advance=advance)])
    empty = int(np.isnan(embedded[:, 0]).sum())
    if empty:
        raise EvaeError(
            f"{number_of(empty, 'cell has', 'cells have')} no counts over the gene panel, of {len(embedded):,}; "
            "drop them first."
        )
    warn_of_coverage(encoder.coverage, "the cells")
    return embedded, encoder.facts()


def gene_coverage(processor: Any, adata: ad.AnnData) -> float:
    """Share of the model's gene panel, 0 to 1, that `adata` measures."""
    position = processor.gene_positions(gene_columns(adata.var_names, adata.var))
    return float((position >= 0).mean())


def said_coverage(processor: Any, adata: ad.AnnData, what: str) -> float:
    """`gene_coverage`, with a warning where it is low."""
    coverage = gene_coverage(processor, adata)
    warn_of_coverage(coverage, what)
    return coverage


def warn_of_coverage(coverage: float, what: str) -> None:
    """Warn (UserWarning) where cells measure less than 90 % of the gene panel: the model takes the others for zeros."""
    if coverage < FULL_ENOUGH:
        warnings.warn(
            f"{what} measure {coverage:.0%} of the model's gene panel; the other genes count as not expressed, so "
            "library sizes and embeddings are off by their share.",
            stacklevel=4,
        )
