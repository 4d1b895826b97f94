"""Which knock-downs bring stressed cells back to rest? The reversion benchmark of frozen cell embeddings.

    from evae import reversion
    result = reversion.run("screen.h5ad", reversion.PRESETS["telohaec"], model="runs/tokenizer", baselines=("pca",))
    result.print()

Enters: a screen as AnnData or h5ad, a model, embeddings that others made. Leaves: a `ReversionResult` with rankings,
enrichment, separation and a report. May import: `inference`, `data.reading`, `data.preparing`, `evaluation`, `common`.
"""

from evae.reversion.benchmark import run
from evae.reversion.names import PRESETS, ScreenNames
from evae.reversion.result import ReversionResult

__all__ = ["PRESETS", "ReversionResult", "ScreenNames", "run"]
