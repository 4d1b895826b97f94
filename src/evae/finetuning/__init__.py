"""A trained prior goes on with new cells: new perturbations, cell types and batches, over its own gene panel.

Enters: a checkpoint and a dataset folder. Leaves: a run folder with the whole model, or with an adapter (LoRA, in the
format of PEFT) that `evae.pipeline` loads on top of the checkpoint; and how far the old perturbations moved. The loop
is that of `training`. May import: `training`, `inference`, `data`, `models`, `common`, the scale of `evaluation`.
"""

from typing import TYPE_CHECKING

from evae.common.lazy import lazy_names

if TYPE_CHECKING:
    from evae.finetuning.run import finetune

__all__ = ["finetune"]

if not TYPE_CHECKING:  # a type checker would take every name for granted
    __getattr__ = lazy_names(__name__, {"finetune": "run"})
