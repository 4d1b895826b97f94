"""Models, configurations and the processor: the files that are pushed to the Hub as custom code.

The names below are imported on first use. So `evae.models.contract_evae`, which needs numpy only, can be imported
without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .contract_evae import EvaeError

if TYPE_CHECKING:
    from .configuration_evae import EvaeConfig
    from .configuration_evae_prior import EvaeARConfig, EvaeFlowConfig, EvaeMDLMConfig
    from .modeling_evae import EvaeModel, EvaeOutput
    from .modeling_evae_ar import EvaeARForCausalLM
    from .modeling_evae_flow import EvaeFlowModel
    from .modeling_evae_mdlm import EvaeMDLMModel
    from .processing_evae import EvaeProcessor

__all__ = [
    "EvaeARConfig",
    "EvaeARForCausalLM",
    "EvaeConfig",
    "EvaeError",
    "EvaeFlowConfig",
    "EvaeFlowModel",
    "EvaeMDLMConfig",
    "EvaeMDLMModel",
    "EvaeModel",
    "EvaeOutput",
    "EvaeProcessor",
    "register",
]
_FILES = {
    "EvaeConfig": "configuration_evae",
    "EvaeARConfig": "configuration_evae_prior",
    "EvaeFlowConfig": "configuration_evae_prior",
    "EvaeMDLMConfig": "configuration_evae_prior",
    "EvaeModel": "modeling_evae",
    "EvaeOutput": "modeling_evae",
    "EvaeARForCausalLM": "modeling_evae_ar",
    "EvaeFlowModel": "modeling_evae_flow",
    "EvaeMDLMModel": "modeling_evae_mdlm",
    "EvaeProcessor": "processing_evae",
}

if not TYPE_CHECKING:  # to a type checker, every name would exist

    def __getattr__(name: str) -> Any:
        if name not in _FILES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def register() -> None:
    """Tell transformers' AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor and AutoFeatureExtractor."""
    from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForCausalLM, AutoProcessor

    from .configuration_evae import EvaeConfig
    from .configuration_evae_prior import EvaeARConfig, EvaeFlowConfig, EvaeMDLMConfig
    from .modeling_evae import EvaeModel
    from .modeling_evae_ar import EvaeARForCausalLM
    from .modeling_evae_flow import EvaeFlowModel
    from .modeling_evae_mdlm import EvaeMDLMModel
    from .processing_evae import EvaeProcessor

    classes: dict[Any, Any] = {
        EvaeConfig: EvaeModel,
        EvaeARConfig: EvaeARForCausalLM,
        EvaeMDLMConfig: EvaeMDLMModel,
        EvaeFlowConfig: EvaeFlowModel,
    }
    for config, model in classes.items():
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        AutoProcessor.register(config, EvaeProcessor, exist_ok=True)
        AutoFeatureExtractor.register(config, EvaeProcessor, exist_ok=True)
    AutoModelForCausalLM.register(EvaeARConfig, EvaeARForCausalLM, exist_ok=True)
