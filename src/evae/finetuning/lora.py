"""Low-rank adapters (LoRA) of a prior by PEFT, in PEFT's own format.

All linear layers of the backbone get an adapter. The tables of the conditions, which grow with the vocabulary, are
trained and saved whole; they make room for themselves when PEFT loads them on top of the checkpoint. An autoregressive
prior is saved with the task type of causal language models, so that PEFT's own `AutoPeftModelForCausalLM` loads it.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021); https://github.com/huggingface/peft.
"""

import importlib.util
import re
from pathlib import Path
from typing import Any

from torch import nn

from evae.inference.adapter import NEEDS_PEFT, TABLES
from evae.models.contract_evae import EvaeError

APART = ("tokenizer.", f"{TABLES}.")  # frozen, and saved whole


def check_peft() -> None:
    """Raise `EvaeError` where PEFT is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise EvaeError(NEEDS_PEFT)


def add_adapter(prior: Any, rank: int, base: str, revision: str) -> Any:
    """Put an adapter into a prior, in place, and freeze the rest.

    Args:
        prior: grown, on top of a checkpoint's weights.
        rank: of the adapter.
        base: folder or Hub id of the checkpoint.
        revision: its Hub commit; "" for a folder.

    Returns:
        PEFT's model around the prior, which saves the adapter.
    """
    from peft import LoraConfig, get_peft_model

    causal = hasattr(prior, "prepare_inputs_for_generation")
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=adapted_layers(prior),
        modules_to_save=[TABLES],
        task_type="CAUSAL_LM" if causal else None,
        revision=revision or None,
    )
    wrapped = get_peft_model(prior, config)
    config.base_model_name_or_path = base
    return wrapped


def adapted_layers(prior: nn.Module) -> str:
    """A pattern of the names of the backbone's linear layers."""
    names = [n for n, m in prior.named_modules() if isinstance(m, nn.Linear) and not n.startswith(APART)]
    layers = {re.sub(r"^blocks\\\.\d+", r"blocks\\.\\d+", re.escape(name)) for name in names}
    return "|".join(sorted(layers))


def save_adapter(wrapped: Any, folder: Path) -> None:
    """Write the adapter, and the configuration of the model that it makes of its checkpoint."""
    wrapped.save_pretrained(folder, save_embedding_layers=False)  # the codes' stay as they are
    wrapped.get_base_model().config.to_json_file(folder / "config.json")
