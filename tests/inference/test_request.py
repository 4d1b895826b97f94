"""What a prediction is made of: whole counts out of a head's numbers."""

import numpy as np
import torch

from evae.inference.request import whole_counts


def test_fractions_become_whole_counts_with_the_same_mean():
    expectations = torch.tensor([0.0, 0.2, 1.0, 8.5, 360.8]).repeat(20_000, 1)
    counts = whole_counts(expectations, torch.Generator().manual_seed(0)).toarray()
    assert (counts == np.floor(counts)).all()
    assert (np.abs(counts - expectations.numpy()) < 1).all()
    np.testing.assert_allclose(counts.mean(0), expectations[0], atol=0.02)


def test_whole_counts_stay_as_they_are():
    counts = torch.tensor([[0.0, 3.0], [2.0, 0.0]])
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    found = whole_counts(counts, generator)
    np.testing.assert_array_equal(found.toarray(), counts.numpy())
    assert found.nnz == 2
    assert torch.equal(generator.get_state(), before)
