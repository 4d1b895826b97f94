"""What is known of a perturbation's effect before a model is asked: log2 fold changes of every gene.

In: a prepared dataset, and vectors of perturbations where some were never seen. Out: a table that
`pipe.predict(effects=...)` takes. Cells are read as stored; no model is needed.
"""

from typing import TYPE_CHECKING

from evae.common.lazy import lazy_names

if TYPE_CHECKING:
    from evae.effects.estimate import EffectEstimates, estimate_effects

__all__ = ["EffectEstimates", "estimate_effects"]
__getattr__ = lazy_names(__name__, {"EffectEstimates": "estimate", "estimate_effects": "estimate"})
