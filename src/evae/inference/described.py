"""A pipeline described, for terminals and for notebooks."""

from typing import Any

from evae.common.html import html_table
from evae.common.messages import first_of, number_of
from evae.inference.checkpoint import Checkpoint

SHOWN = 3  # names of a kind


def as_text(checkpoint: Checkpoint, device: Any) -> str:
    """One line."""
    p = checkpoint.processor
    return (
        f"Pipeline({checkpoint.name}: {type(checkpoint.model).__name__}, {number_of(len(p.genes), 'gene')}, "
        f"{number_of(len(p.perturbations), 'perturbation')} ({first_of(p.perturbations, SHOWN)}), "
        f"{number_of(len(p.cell_types), 'cell type')} ({first_of(p.cell_types, SHOWN)}), control '{p.control}', on "
        f"{device})"
    )


def as_html(checkpoint: Checkpoint, device: Any) -> str:
    """A table: what it knows, what it reads, where it computes."""
    p, config = checkpoint.processor, checkpoint.model.config
    reads = [
        *(["control cells"] if getattr(config, "source_cells", 0) else []),
        *(["effects"] if getattr(config, "condition_on_effect", False) else []),
        *(["batches"] if getattr(config, "condition_on_batch", False) else []),
    ]
    spans = [
        *(("doses", span, unit) for unit, span in getattr(config, "dose_ranges", {}).items()),
        ("times", getattr(config, "time_range", None), "h"),
    ]
    rows = [
        ("model", type(checkpoint.model).__name__ + ("" if checkpoint.is_prior else ", which embeds only")),
        ("genes", f"{len(p.genes):,} ({first_of(p.genes, SHOWN)})"),
        ("perturbations", f"{len(p.perturbations):,} ({first_of(p.perturbations, SHOWN)}), control '{p.control}'"),
        ("cell types", f"{len(p.cell_types):,} ({first_of(p.cell_types, SHOWN)})"),
        *((what, f"{span[0]:g} to {span[1]:g} {unit}") for what, span, unit in spans if span),
        *([("reads", " and ".join(reads) or "names alone")] if checkpoint.is_prior else []),
        ("device", str(device)),
    ]
    return html_table(f"evae pipeline {checkpoint.name}", (), rows)
