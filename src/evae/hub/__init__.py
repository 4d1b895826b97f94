"""Publishing on the Hub: trained models and datasets, each as one folder in one commit.

Enters: a run's folder or a dataset folder, and the numbers of an evaluation. Leaves: a commit on the Hub with a card,
after the model has drawn cells or the shards were read. May import: `inference`, `evaluation.report`, `data`, `common`.
"""

from evae.hub.push import push_dataset, push_run

__all__ = ["push_dataset", "push_run"]
