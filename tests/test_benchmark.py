"""The benchmark: it compares with the published architecture, contenders draw the same codes, and it writes tables."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from evae.models import EvaeARConfig, EvaeARForCausalLM, EvaeConfig, EvaeModel
from evae.models.randomness_evae import CellStreams

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
SIZE = {
    "n_genes": 30, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "n_latents": 4,
    "encoder_layers": 2, "decoder_layers": 2, "fsq_levels": [5, 3], "dropout": 0.0,
}  # fmt: skip


@pytest.fixture
def reference(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import benchmark_reference

    return benchmark_reference


@pytest.mark.parametrize("head", ["ce-quantile", "nb"])
def test_the_reference_is_the_same_network(reference, head):
    """Numbers and gradients of the tokenizer with all its exact short cuts: sparse, in buckets, first layers once."""
    torch.manual_seed(0)
    plain = reference.reference_tokenizer(head=head, **SIZE).double()
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    fast = EvaeModel(EvaeConfig(head=head, **SIZE)).double()
    fast.load_state_dict(plain.state_dict())
    cells = torch.poisson(torch.rand(9, 30, generator=torch.Generator().manual_seed(0)) * 2).double()
    losses = [model(cells).loss for model in (plain, fast)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=0)
    for loss in losses:
        loss.backward()
    for (name, expected), found in zip(plain.named_parameters(), fast.parameters(), strict=True):
        if expected.grad is not None:
            largest = float(expected.grad.abs().max())  # heads compute in float32
            torch.testing.assert_close(found.grad, expected.grad, rtol=0, atol=1e-5 * largest + 1e-9, msg=name)


def test_all_autoregressive_loops_draw_the_same_codes(reference):
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    prior = EvaeARForCausalLM(EvaeARConfig(EvaeConfig(**SIZE), n_perturbations=3, n_cell_types=2, **size))
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    prior.double().eval()
    conditions = {"perturbation_ids": torch.tensor([0, 2, 1, 2]), "cell_type_ids": torch.tensor([0, 1, 1, 1])}
    uniform = CellStreams(1, range(4)).uniform(4)
    codes = prior.sample(**conditions, generator=CellStreams(1, range(4)))
    assert len(codes.unique()) > 2
    for loop in (reference.sample_recomputing, reference.sample_by_hand):
        assert torch.equal(loop(prior, conditions, uniform), codes)


def test_toy_run_writes_both_tables(tmp_path):
    rows = "train_tokenizer"
    command = [sys.executable, str(SCRIPTS / "benchmark.py"), "--quick", "--rows", rows, "--out", str(tmp_path)]
    subprocess.run([*command, "--device", "cpu"], check=True, capture_output=True)
    content = json.loads((tmp_path / "benchmark.json").read_text())
    assert content["facts"]["matrix_peak_flops"] > 1e8
    timed = [r for r in content["records"] if "seconds" in r]
    for row in {r["row"] for r in timed}:
        first, *others = [r for r in timed if r["row"] == row]
        assert first["ours_is_faster_by"] is None
        assert all(r["ours_is_faster_by"] == pytest.approx(r["seconds"] / first["seconds"]) for r in others)
        assert all(len(r["times"]) == 2 for r in (first, *others))
    operations = {(r["row"], r["contender"]): r["gflop_a_cell"] for r in timed}
    step = "tokenizer training step"
    assert operations[step, "published"] > operations[step, "ours at equal width"] > 0
    assert any(r.get("peak_mb", 0) > 0 for r in content["records"])
    table = (tmp_path / "benchmark.md").read_text().splitlines()
    assert sum(line.startswith("| ") for line in table) == 2 + len(timed) + 2 + sum(
        "peak_mb" in r for r in content["records"]
    )


def test_operations_are_counted_without_a_card(tmp_path):
    command = [sys.executable, str(SCRIPTS / "benchmark.py"), "--quick", "--operations", "--rows", "encode,diffuse"]
    subprocess.run([*command, "--device", "cpu", "--out", str(tmp_path)], check=True, capture_output=True)
    records = {r["contender"]: r for r in json.loads((tmp_path / "operations.json").read_text())}
    ours = records["ours, the same numbers as published"]
    assert 100 < ours["operations"] == sum(ours["kinds"].values()) <= 250
    assert ours["read_back"] == 0
    assert records["loop by hand, 32 steps"]["operations"] > 10 * ours["operations"]
    assert len((tmp_path / "operations.md").read_text().splitlines()) == 2 + len(records)
