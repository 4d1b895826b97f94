"""Models, configurations and the processor: the files that are pushed to the Hub as custom code."""

from .configuration_evae import EvaeARConfig, EvaeConfig
from .modeling_evae import EvaeModel, EvaeOutput
from .modeling_evae_ar import EvaeARForCausalLM

__all__ = ["EvaeARConfig", "EvaeARForCausalLM", "EvaeConfig", "EvaeModel", "EvaeOutput"]
