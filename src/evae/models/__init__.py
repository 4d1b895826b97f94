"""Models, configurations and the processor: the files that are pushed to the Hub as custom code."""

from .configuration_evae import EvaeConfig
from .configuration_evae_prior import EvaeARConfig, EvaeFlowConfig, EvaeMDLMConfig
from .contract_evae import EvaeError
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
]
