"""Which knock-downs bring stressed cells back to rest? The reversion benchmark of frozen cell embeddings.

from evae import reversion
result = reversion.run("screen.h5ad", reversion.PRESETS["telohaec"], model="runs/tokenizer", baselines=("pca",))
result.print()
"""

from .benchmark import run
from .names import PRESETS, ScreenNames
from .result import ReversionResult

__all__ = ["PRESETS", "ReversionResult", "ScreenNames", "run"]
