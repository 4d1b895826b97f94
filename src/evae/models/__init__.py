"""Models, configurations and the processor: the files that are pushed to the Hub as custom code."""

from .configuration_evae import EvaeARConfig, EvaeConfig
from .contract_evae import EvaeError
from .modeling_evae import EvaeModel, EvaeOutput
from .modeling_evae_ar import EvaeARForCausalLM
from .processing_evae import EvaeProcessor

__all__ = [
    "EvaeARConfig",
    "EvaeARForCausalLM",
    "EvaeConfig",
    "EvaeError",
    "EvaeModel",
    "EvaeOutput",
    "EvaeProcessor",
]
