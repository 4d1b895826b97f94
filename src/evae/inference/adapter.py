"""An adapter (LoRA, in the format of PEFT) and the checkpoint that it stands on become one model."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import AutoConfig

from evae.common.digests import weights_digest
from evae.common.messages import first_line
from evae.models.contract_evae import EvaeError

ADAPTER, ADAPTER_WEIGHTS, FACTS = "adapter_config.json", "adapter_model.safetensors", "finetune.json"
TABLES = "condition"  # the part of a prior that an adapter replaces as a whole
NEEDS_PEFT = "adapters need the package peft: pip install 'evae[finetune]'"


def base_of(folder: Path, name: str) -> tuple[str, str | None]:
    """The checkpoint that an adapter stands on: folder or Hub id, and the revision of the latter.

    Raises:
        EvaeError: a damaged file, or an adapter of another kind.
    """
    try:
        config = json.loads((folder / ADAPTER).read_text())
        base, revision = str(config["base_model_name_or_path"]), config.get("revision")
    except (ValueError, KeyError, TypeError) as error:
        raise EvaeError(f"{folder / ADAPTER} is damaged ({error}); copy or download the adapter again.") from None
    if config.get("peft_type") != "LORA" or config.get("megatron_config"):
        raise EvaeError(f"{name} is no adapter that `evae finetune` wrote; give one, or a whole model.")
    try:
        with safe_open(folder / ADAPTER_WEIGHTS, framework="numpy"):
            pass
    except (OSError, SafetensorError):
        raise EvaeError(
            f"{folder / ADAPTER_WEIGHTS} is missing, truncated or damaged; copy or download the adapter again."
        ) from None
    return base, revision


def merged(base: Any, folder: Path, name: str) -> Any:
    """The model of a checkpoint with an adapter merged into its weights, and the vocabulary that the adapter knows.

    Args:
        base: the checkpoint's model; it is changed.
        folder: of the adapter.
        name: what messages call it.

    Raises:
        EvaeError: PEFT is not installed, or the adapter was made on other weights.
    """
    try:
        from peft import PeftModel
    except ImportError:
        raise EvaeError(NEEDS_PEFT) from None
    facts = json.loads((folder / FACTS).read_text()) if (folder / FACTS).is_file() else {}
    if facts.get("base_digest") not in (None, weights_digest(base)):
        raise EvaeError(
            f"the checkpoint that {name} stands on has other weights than when the adapter was trained; bring the "
            "former ones back, or fine-tune again."
        )
    try:
        model = PeftModel.from_pretrained(base, folder).merge_and_unload()
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        reason = first_line(error)
        raise EvaeError(f"the adapter {name} does not fit its checkpoint ({reason}); fine-tune again.") from error
    sizes = (
        "n_perturbations",
        "n_cell_types",
        "n_effects",
        "perturbation_kinds",
        "guidance_scale",
        "sampling_temperature",
    )
    for field in sizes:
        setattr(model.config, field, getattr(config, field))
    return model.requires_grad_(True).eval()
