"""The precision of a run: what the machine is quick in, or what the settings say, run by run."""

import pytest
import torch

from evae.training.loop import setup
from evae.training.settings import Settings


@pytest.mark.parametrize(("chosen", "has", "expected"), [("auto", True, "bf16"), ("auto", False, "no")])
def test_automatic_precision_on_a_cpu(monkeypatch, tmp_path, chosen, has, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(setup, "cpu_has_bfloat16", lambda: has)
    for precision, then in ((chosen, expected), ("no", "no"), ("bf16", "bf16")):  # in one process
        settings = Settings(dataset="toy", output_dir=str(tmp_path), mixed_precision=precision)
        assert setup.make_accelerator(settings).mixed_precision == then


def test_a_cpu_has_bfloat16_where_torch_finds_one_of_the_instructions(monkeypatch):
    for found in ((False, False), (True, False), (False, True)):
        for name, answer in zip(setup.BFLOAT16, found, strict=True):
            monkeypatch.setattr(torch.cpu, name, lambda answer=answer: answer, raising=False)
        assert setup.cpu_has_bfloat16() == any(found)
    for name in setup.BFLOAT16:  # a torch that does not tell
        monkeypatch.delattr(torch.cpu, name)
    assert not setup.cpu_has_bfloat16()
