"""Cells encoded and drawn back: what the tokenizer alone keeps and loses."""

from pathlib import Path

import anndata as ad
import scipy.sparse as sp
import torch

from evae.data.reading.anndata_file import as_anndata
from evae.inference.checkpoint import Checkpoint
from evae.inference.embedding import said_coverage
from evae.inference.request import planned_genes, whole_counts
from evae.inference.sampling import panel_batches


def reconstruct_cells(
    checkpoint: Checkpoint, cells: ad.AnnData | str | Path, seed: int, layer: str | None, device: torch.device,
    progress: bool,
) -> ad.AnnData:  # fmt: skip
    """See `Pipeline.reconstruct`."""
    cells = as_anndata(cells, "the cells", layer)
    tokenizer, processor = checkpoint.tokenizer, checkpoint.processor
    generator = torch.Generator(device=device).manual_seed(seed)
    blocks = []
    with torch.inference_mode():
        for batch in panel_batches(processor, cells, device=device, title="reconstructing cells", progress=progress):
            codes = tokenizer.encode(batch["counts"], batch["gene_ids"])
            counts = tokenizer.sample_counts(codes, batch["library_size"], generator)
            blocks.append(whole_counts(counts, generator))
    facts = {"seed": seed, "gene_coverage": said_coverage(processor, cells, "the cells")} | checkpoint.provenance()
    var = planned_genes(processor, cells)
    return ad.AnnData(X=sp.vstack(blocks, format="csr"), obs=cells.obs.copy(), var=var, uns={"evae": facts})
