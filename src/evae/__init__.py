"""ExpressionVAE: discrete-latent generative models for single-cell perturbation prediction.

    import evae
    pipe = evae.pipeline("evae/replogle-ar")
    predicted = pipe.predict(controls, perturbation="STAT1", n_cells=500)

Importing the package registers its classes with transformers' AutoConfig, AutoModel, AutoModelForCausalLM,
AutoProcessor and AutoFeatureExtractor.
"""

from importlib.metadata import version
from typing import Any

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForCausalLM,
    AutoProcessor,
)

from evae.inference.pipeline import Pipeline, pipeline
from evae.models import (
    EvaeARConfig,
    EvaeARForCausalLM,
    EvaeConfig,
    EvaeError,
    EvaeFlowConfig,
    EvaeFlowModel,
    EvaeMDLMConfig,
    EvaeMDLMModel,
    EvaeModel,
    EvaeOutput,
    EvaeProcessor,
)

__version__ = version("evae")
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
    "Pipeline",
    "pipeline",
]


def _register() -> None:
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


_register()
