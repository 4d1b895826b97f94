"""ExpressionVAE: discrete-latent generative models for single-cell perturbation prediction.

    import evae
    pipe = evae.pipeline("evae/replogle-ar")
    predicted = pipe.predict(controls, perturbation="STAT1", n_cells=500)

Importing the package registers its classes with transformers' AutoConfig, AutoModel, AutoModelForCausalLM,
AutoProcessor and AutoFeatureExtractor. Only the `evae` command leaves that to the loading of a checkpoint, so that
its help and its refusals need not wait for torch.
"""

import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evae.models import EvaeError, register

if TYPE_CHECKING:
    from evae.finetuning import finetune
    from evae.inference.example import example_controls
    from evae.inference.pipeline import Pipeline, pipeline
    from evae.models import (
        EvaeARConfig,
        EvaeARForCausalLM,
        EvaeConfig,
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
    "example_controls",
    "finetune",
    "pipeline",
]
_ELSEWHERE = {
    "Pipeline": "evae.inference.pipeline",
    "example_controls": "evae.inference.example",
    "finetune": "evae.finetuning",
    "pipeline": "evae.inference.pipeline",
}


if not TYPE_CHECKING:  # a type checker would take every name for granted

    def __getattr__(name: str) -> Any:
        """The public names, imported when they are first asked for."""
        if name == "plot":  # a room that draws, imported when it is asked for
            return import_module("evae.plot")
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_ELSEWHERE.get(name, "evae.models")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _is_command() -> bool:
    """Whether this process is the `evae` command: the script, `python -m evae.cli`, or a `-c` that imports it.

    The reader of uploads, which the app starts, is one too: none of them waits for classes that it may not need.
    """
    program = Path(sys.argv[0] if sys.argv else "")
    if program.name in ("-m", "-c"):  # what stands there while Python looks for a module, or with code of one line
        return any("evae.cli" in word or "evae.app.reader" in word for word in sys.orig_argv)
    return program.stem == "evae" or program.parts[-3:] == ("evae", "cli", "__main__.py")


if not _is_command():
    register()
