"""The settings of a fine-tuning: those of a prior's training, with defaults by the number of new cells."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from evae.models.contract_evae import EvaeError
from evae.training.settings import PriorSettings, check_names, copies_for

GIVEN = ("dataset", "dataset_weights", "output_dir", "model", "model_type", "perturbation_features", "combination_sign")
PASSES = 20.0  # over the new cells
FEWEST_STEPS, MOST_STEPS = 100, 5_000
BATCH = 64


@dataclass
class FinetuneSettings(PriorSettings):
    """Settings of a fine-tuning; what the model is, its checkpoint says."""

    checkpoint: str = ""  # folder or Hub id of the prior to begin with
    lora_rank: int = 0  # rank of the adapter (LoRA); 0 trains all weights
    drift_cells: int = 64  # predicted of every old pair, before and after, to measure its drift; 0 measures none
    learning_rate: float = 5e-4
    weight_decay: float = 1e-3
    ema_decay: float = 0.98
    final_weights: str = "best"
    batch_size: int = field(default=BATCH)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lora_rank", "drift_cells"):
            if getattr(self, name) < 0:
                raise EvaeError(f"{name} is {getattr(self, name)}; give 0 or more.")


def defaults(n_cells: int, lora: bool) -> dict[str, Any]:
    """Settings by the number of new training cells.

    So many passes over few cells, or so many steps over many, that the validation loss has its lowest point among
    them; the weights of that point are kept. An adapter, which is trained from zero, takes larger steps.
    """
    steps = min(max(math.ceil(PASSES * n_cells / BATCH), FEWEST_STEPS), MOST_STEPS)
    copies = copies_for(n_cells)
    rate = 5e-4 if copies else 2e-4
    return {
        "max_steps": steps,
        "warmup_steps": steps // 10,
        "learning_rate": 2 * rate if lora else rate,
        "thinned_copies": copies,
        "eval_every": max(steps // 10, 1),
        "save_every": steps,
        "log_every": max(steps // 20, 1),
    }


def finetune_settings(n_cells: int, given: Mapping[str, Any], own: Mapping[str, Any]) -> FinetuneSettings:
    """The settings of a run.

    Args:
        n_cells: new training cells.
        given: what the user names.
        own: what the checkpoint and the arguments say.

    Raises:
        EvaeError: an unknown setting, one that the checkpoint decides, or a value of the wrong type.
    """
    check_names(given, known_settings(), "a fine-tuning, whose model is that of the checkpoint")
    values = dict(given)
    steps = values.get("max_steps")
    by_size = defaults(n_cells, bool(own.get("lora_rank")))
    if isinstance(steps, int) and steps > 0:  # the intervals go with the steps
        by_size |= {"warmup_steps": steps // 10, "eval_every": max(steps // 10, 1), "save_every": steps}
    return FinetuneSettings(**{**by_size, **values, **own})


def known_settings() -> Sequence[str]:
    """The names that a user may give; the others are arguments, or the checkpoint's."""
    taken = {*GIVEN, "checkpoint", "tokenizer", "lora_rank"}
    return [f.name for f in fields(FinetuneSettings) if f.name not in taken]
