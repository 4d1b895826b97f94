"""A loaded checkpoint at work with its tokenizer alone: what tokenizers and priors have in common."""

from pathlib import Path

import anndata as ad
import torch

from evae.inference.checkpoint import Checkpoint
from evae.inference.described import as_html, as_text
from evae.inference.devices import choose_device
from evae.inference.embedding import embed_cells, gene_coverage
from evae.inference.reconstruction import reconstruct_cells


class LoadedModel:
    """A loaded checkpoint that embeds and rebuilds cells.

    Attributes:
        model: the tokenizer or the prior, in evaluation mode.
        processor: its `EvaeProcessor`: gene panel, vocabularies, control.
        device: where it computes.
    """

    def __init__(self, checkpoint: Checkpoint, device: str | torch.device | None = None):
        self.device = choose_device(device)
        self.checkpoint = checkpoint
        self.model = checkpoint.model.to(self.device)
        self.processor = checkpoint.processor

    def __repr__(self) -> str:
        return as_text(self.checkpoint, self.device)

    def _repr_html_(self) -> str:
        return as_html(self.checkpoint, self.device)

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
            layer: the layer that holds raw counts, or "raw"; X if None.
            key: where to write.
            progress: show a progress bar.

        Returns:
            `adata` itself.

        Raises:
            EvaeError: counts that are not raw, cells without counts, too little gene coverage, unknown kind, or a view
                of a backed AnnData.
        """
        adata.obsm[key], facts = embed_cells(self.checkpoint, adata, kind, layer, self.device, progress)
        adata.uns[key] = facts
        return adata

    def reconstruct(
        self,
        adata: ad.AnnData | str | Path,
        *,
        seed: int = 0,
        layer: str | None = None,
        perturbation_key: str = "perturbation",
        cell_type_key: str = "cell_type",
        progress: bool = True,
    ) -> ad.AnnData:
        """Encode cells and draw them back from their codes: what the tokenizer alone keeps and loses.

        Args:
            adata: cells of raw counts, or the path of their h5ad file.
            seed: of the draws from the output head.
            layer: the layer that holds raw counts, or "raw"; X if None.
            perturbation_key, cell_type_key: obs columns of the labels, needed where the decoder is told them.
            progress: show a progress bar.

        Returns:
            AnnData of the same cells and obs, raw counts over the gene panel, genes named as in `adata`. Unlike a
            prediction, each cell keeps its own library size.
        """
        keys = (perturbation_key, cell_type_key)
        return reconstruct_cells(self.checkpoint, adata, seed, layer, self.device, progress, *keys)

    def gene_coverage(self, adata: ad.AnnData) -> float:
        """Share of the model's gene panel, 0 to 1, that `adata` measures."""
        return gene_coverage(self.processor, adata)
