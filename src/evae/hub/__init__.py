"""Publishing on the Hub: trained models and datasets, each as one folder in one commit."""

from evae.hub.push import push_dataset, push_run

__all__ = ["push_dataset", "push_run"]
