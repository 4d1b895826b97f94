"""Studies: a cross product of tokenizers, heads, priors and seeds, trained and evaluated alike. `run_study` does it.

Enters: a YAML file, and a dataset or h5ad files with splits. Leaves: a folder of trained models, their numbers on the
same held-out cells, and tables and plots of all. May import: `training`, `inference`, `effects`, `evaluation`, `data`,
`models`, `common`.
"""

from evae.study.plan import Study, read_study
from evae.study.run import run_study

__all__ = ["Study", "read_study", "run_study"]
