"""Publishing on the Hub: trained models, datasets, and the app as a Space, each as one folder in one commit.

Enters: a run's folder or a dataset folder, and the numbers of an evaluation. Leaves: a commit on the Hub with a card,
after the model has drawn cells or the shards were read. May import: `app` (how control cells are read), `inference`,
`evaluation.report`, `data`, `common`.
"""

from evae.hub.push import push_dataset, push_run
from evae.hub.space import push_space

__all__ = ["push_dataset", "push_run", "push_space"]
