"""Studies: a cross product of tokenizers, heads, priors and seeds, trained and evaluated alike. `run_study` does it."""

from evae.study.plan import Study, read_study
from evae.study.run import run_study

__all__ = ["Study", "read_study", "run_study"]
