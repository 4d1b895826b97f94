"""Which commit of a dataset on the Hub a model's card and numbers speak of."""

import logging
from collections.abc import Sequence

from evae.common.messages import number_of
from evae.data.format import DatasetInfo
from evae.data.store import resolve_dataset
from evae.models.contract_evae import EvaeError

LOG = logging.getLogger(__name__)


def revision(dataset_id: str, genes: Sequence[str]) -> str | None:
    """The commit at which a dataset stands on the Hub now; None, with a remark, where it cannot be read there.

    Args:
        dataset_id: Hub id of the training data.
        genes: gene panel of the model.

    Raises:
        EvaeError: the dataset there has another gene panel, so it is not what the model was trained on.
    """
    try:
        folder = resolve_dataset(dataset_id)
        found = DatasetInfo.read(folder, dataset_id).genes
    except EvaeError as error:
        LOG.warning(f"the card names no commit of the training data: {error}")
        return None
    if list(found) != list(genes):
        raise EvaeError(
            f"the dataset {dataset_id} has another gene panel ({number_of(len(found), 'gene')}) than the model "
            f"({len(genes):,}); name the dataset that the model was trained on."
        )
    return folder.resolve().name  # the Hub's client keeps a snapshot in a folder of its commit's name
