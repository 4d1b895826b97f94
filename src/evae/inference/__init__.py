"""A checkpoint at work: loaded, told what to predict, drawing cells, embedding cells.

Enters: a checkpoint folder or Hub id, and cells as AnnData or h5ad. Leaves: AnnData of predicted cells, embeddings.
May import: `models`, `data` and its rooms `reading` and `streaming`, `common`, and of `evaluation` how cells are
scaled and tested.
"""

from typing import TYPE_CHECKING

from evae.common.lazy import lazy_names

if TYPE_CHECKING:
    from evae.inference.calibration import calibrate
    from evae.inference.checkpoint import Checkpoint, load_checkpoint
    from evae.inference.devices import choose_device
    from evae.inference.embedding_files import EmbeddedFile, embed_file
    from evae.inference.held_out import predict_held_out
    from evae.inference.pipeline import Pipeline

__all__ = [
    "Checkpoint",
    "EmbeddedFile",
    "Pipeline",
    "calibrate",
    "choose_device",
    "embed_file",
    "load_checkpoint",
    "predict_held_out",
]

if not TYPE_CHECKING:  # a type checker would take every name for granted
    __getattr__ = lazy_names(
        __name__,
        {
            "Checkpoint": "checkpoint",
            "EmbeddedFile": "embedding_files",
            "Pipeline": "pipeline",
            "calibrate": "calibration",
            "choose_device": "devices",
            "embed_file": "embedding_files",
            "load_checkpoint": "checkpoint",
            "predict_held_out": "held_out",
        },
    )
