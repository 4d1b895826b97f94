"""Cells encoded and drawn back: what the tokenizer alone keeps and loses."""

from pathlib import Path

import anndata as ad
import scipy.sparse as sp
import torch

from evae.data.reading.anndata_file import as_anndata
from evae.inference.checkpoint import Checkpoint
from evae.inference.decoder_labels import decoder_ids, labels_of, told_labels
from evae.inference.embedding import said_coverage
from evae.inference.request import planned_genes, whole_counts
from evae.inference.sampling import panel_batches


def reconstruct_cells(
    checkpoint: Checkpoint, cells: ad.AnnData | str | Path, seed: int, layer: str | None, device: torch.device,
    progress: bool, perturbation_key: str = "perturbation", cell_type_key: str = "cell_type",
) -> ad.AnnData:  # fmt: skip
    """See `Pipeline.reconstruct`."""
    keys = {"perturbation_ids": perturbation_key, "cell_type_ids": cell_type_key}
    needed = tuple(keys[argument] for argument in told_labels(checkpoint))
    cells = as_anndata(cells, "the cells", layer, needed)
    tokenizer, processor = checkpoint.tokenizer, checkpoint.processor
    labels = labels_of(checkpoint, cells, perturbation_key, cell_type_key, "the cells")
    told = {name: ids.to(device) for name, ids in decoder_ids(checkpoint, labels).items()}
    generator = torch.Generator(device=device).manual_seed(seed)
    blocks, start = [], 0
    with torch.inference_mode():
        for batch in panel_batches(processor, cells, device=device, title="reconstructing cells", progress=progress):
            codes = tokenizer.encode(batch["counts"], batch["gene_ids"])
            own = {name: ids[start : start + len(codes)] for name, ids in told.items()}
            counts = tokenizer.sample_counts(codes, batch["library_size"], generator, **own)
            start += len(codes)
            blocks.append(whole_counts(counts, generator))
    facts = {"seed": seed, "gene_coverage": said_coverage(processor, cells, "the cells")} | checkpoint.provenance()
    var = planned_genes(processor, cells)
    return ad.AnnData(X=sp.vstack(blocks, format="csr"), obs=cells.obs.copy(), var=var, uns={"evae": facts})
