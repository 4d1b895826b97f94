"""What the terminal says under the table of an evaluation."""

import re
from pathlib import Path

import pandas as pd
import pytest

from evae.evaluation.report.brief import verdict
from evae.evaluation.systems import names as systems


def numbers(**fd):
    rows = [
        {"system": system.replace("_", " "), "group": "robust", "level": "pooled", "metric": "fd", "value": value}
        for system, value in fd.items()
    ]
    return pd.DataFrame(rows, columns=["system", "group", "level", "metric", "value"])


@pytest.mark.parametrize(
    ("fd", "said"),
    [
        ({"model": 5.0, "control_copy": 9.0, "real_split_half": 1.0}, "No baseline beats the model on FD"),
        ({"model": 5.0, "control_copy": 3.0, "linear": 4.0}, "better than the model: control copy by 2.*, linear by 1"),
        (
            {"model": 5.0, "linear": 4.0, "additive_shift": float("nan")},
            "better than the model: linear by 1.*--tokenizer",
        ),
        ({"model": 5.0, "linear": 4.0, "mean-collapsed_model": 1.0}, "better than the model: linear by 1.00\\. For"),
        ({"model": 5.0, "linear": 4.0, "tokenizer_alone": 4.5}, "The codes lose that: the tokenizer alone has 4.5"),
        ({"model": 5.0, "linear": 4.0, "tokenizer_alone": 3.0}, "The prior loses that: the tokenizer alone has 3.0"),
    ],
)
def test_the_verdict_names_what_is_better(fd, said):
    sentence = verdict(numbers(**fd))
    assert re.search(said, sentence)
    assert "nan" not in sentence


def test_another_protocol_or_the_mean_error_stands_in():
    table = numbers(model=5.0, linear=4.0)
    assert "On FD" in verdict(table.assign(group="paper"))
    mse = table.assign(group="perturbation", level="pair", metric="mse")
    assert "On MSE (model 5.00) better than the model: linear" in verdict(mse)
    assert "On FD" in verdict(pd.concat([mse, table]))


def test_every_system_is_explained_in_report_and_documentation():
    names = {value for name, value in vars(systems).items() if name.isupper() and isinstance(value, str)}
    assert set(systems.MEANINGS) == names
    page = (Path(__file__).parents[3] / "docs/explanation/protocols.md").read_text()
    of_suites = {
        systems.MODEL,
        systems.SCVI_SHIFT,
        systems.SCGEN_SHIFT,
        systems.CONTEXT_MEAN,
        systems.SHRUNKEN_TRANSFER,
    }
    assert not [name for name in names - of_suites if f"**{name}**" not in page]


def test_no_verdict_without_fd_or_baselines():
    assert verdict(numbers()) is None
    assert verdict(numbers(model=5.0, real_split_half=1.0)) is None
