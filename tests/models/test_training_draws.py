"""What training draws for a cell depends on the cell's number, not on the batch or the process that it falls to."""

import pytest
import torch

from evae.models import EvaeModel
from evae.models.coders_evae import to_sparse
from evae.models.randomness_evae import CellStreams

CASES = {
    "fsq": {"count_splitting": True, "condition_on_library": True, "loss_genes": 3, "decoder_self_attention": False},
    "gaussian": {"quantizer": "gaussian", "latent_dim": 3, "count_splitting": True, "condition_on_library": True},
    "perceptrons": {"encoder": "mlp", "decoder": "mlp", "count_splitting": True, "condition_on_library": True},
}


def loss_of(model, batch, first, number=4):
    n = len(next(iter(batch.values())))
    return model(**batch, generator=CellStreams(9, range(first, first + n), number)).loss


def halves_and_whole(model, batch):
    """The mean loss of two halves of a batch on two processes, and the loss of the batch on one."""
    n = len(next(iter(batch.values()))) // 2
    first, second = ({key: value[rows] for key, value in batch.items()} for rows in (slice(n), slice(n, None)))
    return (loss_of(model, first, 20) + loss_of(model, second, 20 + n)) / 2, loss_of(model, batch, 20)


@pytest.mark.parametrize("case", CASES)
def test_tokenizer(tiny_config, case):
    torch.manual_seed(0)
    config = tiny_config(dropout=0.0, **CASES[case])
    model = EvaeModel(config).train()
    counts = torch.poisson(3 * torch.rand(10, config.n_genes))
    counts[:5, 3:] = 0  # so that the two halves are padded to different widths
    values, genes = to_sparse(counts)
    width = int((values[:5] > 0).sum(1).max())
    first = loss_of(model, {"counts": values[:5, :width], "gene_ids": genes[:5, :width]}, 20)
    second = loss_of(model, {"counts": values[5:], "gene_ids": genes[5:]}, 25)
    whole = {"counts": values, "gene_ids": genes}
    torch.testing.assert_close((first + second) / 2, loss_of(model, whole, 20))
    assert not torch.isclose(loss_of(model, whole, 20), loss_of(model, whole, 30))
    if "loss_genes" in CASES[case]:
        assert not torch.isclose(loss_of(model, whole, 20), loss_of(model, whole, 20, number=5))


@pytest.mark.parametrize("kind", ["ar", "mdlm", "flow"])
def test_priors(tiny_prior, kind):
    prior = tiny_prior(kind=kind, dropout=0.0, condition_dropout=0.5).train()
    torch.manual_seed(0)
    tokens = torch.randint(4, (8, 4))
    batch = {"latents": torch.randn(8, 4, 3)} if kind == "flow" else {"codes": tokens}
    batch |= {"perturbation_ids": torch.arange(8) % 3, "cell_type_ids": torch.arange(8) % 2}
    apart, whole = halves_and_whole(prior, batch)
    torch.testing.assert_close(apart, whole)
    assert not torch.isclose(whole, loss_of(prior, batch, 100))
