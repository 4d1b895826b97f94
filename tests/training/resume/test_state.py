"""Weights, AdamW, moving average and random states as named tensors."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from evae.training.resume.state import (
    MovingAverage,
    build_optimizer,
    load_optimizer,
    load_weights,
    optimizer_tensors,
    random_states,
    restore_random_states,
    weights_of,
)

CPU = torch.device("cpu")


class Model(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.table, self.linear, self.norm = nn.Embedding(5, 3), nn.Linear(3, 2), nn.LayerNorm(2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.register_buffer("mean", torch.randn(2))

    def forward(self, ids):
        return self.norm(self.frozen(self.linear(self.table(ids)))).square().sum() + self.linear.bias.sum()


def take_steps(model, optimizer, n):
    for step in range(n):
        model(torch.arange(5) * (step + 1) % 5).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_frozen_weights_are_left_out_and_buffers_are_not():
    assert set(weights_of(Model(0))) == {
        "table.weight",
        "linear.weight",
        "linear.bias",
        "norm.weight",
        "norm.bias",
        "mean",
    }


def test_optimizer_resumes_exactly():
    model = Model(0)
    optimizer = build_optimizer(model, 0.1, 0.01)
    take_steps(model, optimizer, 3)
    other = Model(1)
    load_weights(other, weights_of(model))
    other.frozen.load_state_dict(model.frozen.state_dict())
    resumed = build_optimizer(other, 0.1, 0.01)
    load_optimizer(other, resumed, {k: v.clone() for k, v in optimizer_tensors(model, optimizer).items()})
    take_steps(model, optimizer, 2)
    take_steps(other, resumed, 2)
    for name, tensor in weights_of(model).items():
        assert torch.equal(tensor, weights_of(other)[name]), name


def test_other_names_are_refused():
    with pytest.raises(KeyError):
        load_weights(Model(0), {"other": torch.zeros(1)})


def test_decay_falls_on_matrices_only():
    model = Model(0)
    model.gene_offsets = torch.nn.Parameter(torch.ones(3, 2))  # a bias for every gene
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, 0.1, 0.5)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    shrunk = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert shrunk == {"linear.weight"}
    assert torch.allclose(model.linear.weight, before["linear.weight"] * (1 - 0.1 * 0.5))


def test_moving_average_follows_its_formula_and_swaps_back():
    model = Model(0)
    average = MovingAverage(model, 0.7)
    expected, buffer = model.linear.weight.detach().clone(), model.mean.clone()
    optimizer = build_optimizer(model, 0.1, 0.0)
    for step in range(1, 40):
        past = min(0.7, (1 + step) / (10 + step))
        take_steps(model, optimizer, 1)
        model.mean += 1
        average.update(step)
        expected = past * expected + (1 - past) * model.linear.weight.detach()
        buffer = past * buffer + (1 - past) * model.mean
    trained = model.linear.weight.detach().clone()
    average.swap()
    assert torch.allclose(model.linear.weight, expected, atol=1e-6)
    assert torch.allclose(model.mean, buffer, atol=1e-5)
    average.swap()
    assert torch.equal(model.linear.weight, trained)


def test_random_states_come_back():
    torch.manual_seed(3), random.seed(4), np.random.seed(5)  # noqa: NPY002
    tensors, record = random_states(CPU)
    first = (torch.rand(4), random.random(), random.gauss(0, 1), np.random.rand(3))  # noqa: NPY002
    restore_random_states(tensors, record, CPU)
    again = (torch.rand(4), random.random(), random.gauss(0, 1), np.random.rand(3))  # noqa: NPY002
    assert torch.equal(first[0], again[0])
    assert first[1:3] == again[1:3]
    assert np.array_equal(first[3], again[3])
