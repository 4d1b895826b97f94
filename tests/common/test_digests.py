"""Digests: equal content gives equal digests, whatever it is stored in; any change gives another."""

import hashlib

import torch
from torch import nn

from evae.common.digests import file_digest, weights_digest


def test_a_file(tmp_path):
    content = bytes(range(256)) * 5_000
    (tmp_path / "file").write_bytes(content)
    assert file_digest(tmp_path / "file") == hashlib.sha256(content).hexdigest()
    assert file_digest(tmp_path / "file", "md5") == hashlib.md5(content).hexdigest()


def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))  # its count of batches has no dimension


def test_weights_are_known_by_value_not_by_where_they_lie():
    model, other = make(), make()
    with torch.no_grad():
        other[0].weight = nn.Parameter(other[0].weight.t().contiguous().t())
    assert other[0].weight.stride() != model[0].weight.stride()
    assert weights_digest(model) == weights_digest(other)


def test_every_weight_and_buffer_counts():
    seen = {weights_digest(make())}
    for name in make().state_dict():
        model = make()
        with torch.no_grad():
            model.state_dict()[name].add_(1)
        seen.add(weights_digest(model))
    assert len(seen) == 1 + len(make().state_dict())
    assert weights_digest(nn.Sequential(make())) not in seen  # equal values under other names
