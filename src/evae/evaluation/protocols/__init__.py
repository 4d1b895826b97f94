"""Which cells are compared, how often and by which metric.

Enters: a `Comparison` and systems. Leaves: records, one a number. May import: the rooms `cells`, `metrics` and
`systems` of `evaluation`, and `common`.
"""

from evae.evaluation.protocols.cell_eval_adapter import cell_eval_protocol
from evae.evaluation.protocols.challenge import challenge_protocol
from evae.evaluation.protocols.depth import depth_protocol
from evae.evaluation.protocols.differential import de_protocol
from evae.evaluation.protocols.distribution import (
    diversity_protocol,
    paper_protocol,
    perturbation_protocol,
    robust_protocol,
)
from evae.evaluation.protocols.record import Record

__all__ = [
    "Record",
    "cell_eval_protocol",
    "challenge_protocol",
    "de_protocol",
    "depth_protocol",
    "diversity_protocol",
    "paper_protocol",
    "perturbation_protocol",
    "robust_protocol",
]
