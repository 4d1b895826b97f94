"""A device that cannot be used is refused in one line, before anything is loaded."""

import pytest
import torch

import evae
from evae.inference.devices import choose_device
from evae.models.contract_evae import EvaeError


def test_the_cpu_and_the_best_there_is():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device(torch.device("cpu")) == torch.device("cpu")
    assert choose_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "cup"])
def test_others_are_refused(name, tmp_path):
    with pytest.raises(EvaeError, match=f"'{name}'") as caught:
        choose_device(name)
    assert "cpu" in str(caught.value)
    with pytest.raises(EvaeError, match=f"'{name}'"):
        evae.pipeline(tmp_path / "nowhere", device=name)


def test_the_command_says_so_in_one_line(run, tiny_checkpoint, screen_file, tmp_path):
    out = tmp_path / "out.h5ad"
    arguments = [
        ("predict", tiny_checkpoint, "--controls", screen_file, "--perturbation", "p", "--out", out),
        ("embed", tiny_checkpoint, screen_file, "--out", out),
    ]
    for command in arguments:
        outcome = run(*command, "--device", "gpu")
        assert (outcome.code, outcome.err) == (2, "error: there is no device 'gpu'; give cpu, cuda, cuda:1 or mps.\n")
        assert list(tmp_path.iterdir()) == []
