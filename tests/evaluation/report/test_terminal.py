"""What the terminal says under the table of an evaluation."""

import re
from types import SimpleNamespace

import pandas as pd
import pytest

from evae.evaluation.report.terminal import verdict


def numbers(**fd):
    rows = [
        {"system": system.replace("_", " "), "group": "robust", "level": "pooled", "metric": "fd", "value": value}
        for system, value in fd.items()
    ]
    table = pd.DataFrame(rows, columns=["system", "group", "level", "metric", "value"])
    return SimpleNamespace(summary=lambda: table)


@pytest.mark.parametrize(
    ("fd", "said"),
    [
        ({"model": 5.0, "control_copy": 9.0, "real_split_half": 1.0}, "No baseline beats the model on FD"),
        ({"model": 5.0, "control_copy": 3.0, "linear": 4.0}, "better than the model: control copy by 2.*, linear by 1"),
        ({"model": 5.0, "linear": 4.0, "additive_shift": float("nan")}, "better than the model: linear by 1"),
    ],
)
def test_the_verdict_names_what_is_better(fd, said):
    sentence = verdict(numbers(**fd))
    assert re.search(said, sentence)
    assert "nan" not in sentence


def test_no_verdict_without_fd_or_baselines():
    assert verdict(numbers()) is None
    assert verdict(numbers(model=5.0, real_split_half=1.0)) is None
