"""`evae study`: trains what is missing, evaluates all alike, writes the tables; interrupted, it goes on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from evae.study import read_study, run_study
from evae.study import run as study_run
from evae.study.figures import scaled_over_heads
from evae.study.plan import plan
from evae.study.results import training_numbers

ROOT = Path(__file__).parents[2]
TINY = {"batch_size": 32, "max_steps": 4, "warmup_steps": 1, "eval_every": 4, "save_every": 4}
SIZES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
CODERS = {"encoder": "mlp", "decoder": "mlp", "n_latents": 2, "fsq_levels": [3, 3], "latent_dim": 2}


@pytest.fixture(scope="module")
def content(screen_dataset, tmp_path_factory):
    """The study's YAML as a dictionary: FSQ with two heads, an AR prior, and a flow that does not fit."""
    return {
        "dataset": str(screen_dataset),
        "output_dir": str(tmp_path_factory.mktemp("study") / "out"),
        "heads": ["mse", "ce-quantile"],
        "tokenizer": {**TINY, "model": {**SIZES, **CODERS}},
        "tokenizers": {"FSQ": {"model.quantizer": "fsq"}},
        "prior": {**TINY, "model": {**SIZES, "num_hidden_layers": 1}},
        "priors": {"AR": {"model_type": "evae_ar"}, "flow": {"model_type": "evae_flow"}},
        "seeds": [0],
        "evaluation_seeds": 1,
        "suite": "paper",
    }


@pytest.fixture(scope="module")
def written(content, tmp_path_factory):
    """A function that writes a study, with keys changed at will."""
    folder = tmp_path_factory.mktemp("yaml")

    def write(**changes):
        path = folder / "study.yaml"
        path.write_text(yaml.safe_dump({**content, **changes}))
        return path

    return write


@pytest.fixture
def calls(monkeypatch):
    """What `run_study` trains and evaluates, by folder or kind."""
    made = []
    for name in ("train_tokenizer", "train_prior"):
        own = getattr(study_run, name)
        monkeypatch.setattr(
            study_run, name, lambda s, own=own: (made.append(Path(s.output_dir).name.rsplit("-", 1)[0]), own(s))[1]
        )
    evaluate = study_run.evaluate
    monkeypatch.setattr(study_run, "evaluate", lambda *a, **k: (made.append("evaluation"), evaluate(*a, **k))[1])
    return made


def test_interrupted_it_goes_on_and_then_has_nothing_left_to_do(written, calls, monkeypatch, capsys):
    def interrupted(settings):
        raise KeyboardInterrupt

    study = read_study(written())
    with monkeypatch.context() as patch:
        patch.setattr(study_run, "train_prior", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_study(study)
    assert calls == ["FSQ-mse-seed0"]
    calls.clear()
    out = run_study(study)
    assert calls == ["FSQ-mse-AR-seed0", "FSQ-ce_quantile-seed0", "FSQ-ce_quantile-AR-seed0", *["evaluation"] * 4]
    assert "FSQ + flow was left out: the flow prior needs latents" in capsys.readouterr().out
    calls.clear()
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("results/*")}
    run_study(study)
    assert not calls
    assert stamps == {path: path.stat().st_mtime_ns for path in out.glob("results/*")}
    assert not list(out.rglob("checkpoints"))
    run_study(read_study(written(sampling={"": {}, "guided": {"guidance_scale": 2.0}})))
    assert calls == ["evaluation"] * 2  # nothing is trained anew
    calls.clear()
    run_study(read_study(written(seeds=[0, 1], heads=["mse"])))
    assert calls == ["FSQ-mse-seed1", "FSQ-mse-AR-seed1", *["evaluation"] * 2]


def test_tables_and_plots(written, capsys):
    out = run_study(read_study(written(seeds=[0, 1], heads=["mse"])))
    text = (out / "study.md").read_text()
    rows = [line.split(" | ") for line in text.split("## ")[1].splitlines() if line.startswith("| ")][2:]
    systems = [row[0].removeprefix("| ") for row in rows]
    assert systems[:2] == ["FSQ + AR", "FSQ, tokenizer alone"]
    assert systems[2] == "control copy"
    assert systems[-1] == "real split half"
    assert "mean-collapsed model" not in systems  # it is not of the data
    heading = text.split("## ")[1].splitlines()[2].split(" | ")
    numbers = pd.read_csv(out / "study.csv")
    fd = numbers[(numbers["group"] == "paper") & (numbers["level"] == "pooled") & (numbers["metric"] == "fd")]
    own = fd[fd["system"] == "FSQ + AR"]["value"]
    assert len(own) == 2
    mean, sd = rows[0][heading.index("FD ↓ (paper)")].split(" ±")
    assert float(mean) == pytest.approx(own.mean(), rel=5e-3)
    assert float(sd) == pytest.approx(own.std(), rel=5e-3)
    assert "±" not in rows[-1][heading.index("FD ↓ (paper)")]
    assert fd[fd["system"] == "real split half"]["seed"].isna().all()
    run_study(read_study(written()))  # both heads are there: the plots of heads can be drawn
    for name in ("radar.png", "heads.png"):
        assert (out / "plots" / name).read_bytes()[:4] == b"\x89PNG"
        assert f"plots/{name}" in (out / "study.md").read_text()


def test_tokenizers_alone(written, tmp_path):
    tokenizers = {"few codes": {}, "more codes": {"model.fsq_levels": [4, 4]}}
    out = run_study(read_study(written(priors={}, tokenizers=tokenizers, heads=["mse"], output_dir=str(tmp_path))))
    lines = (out / "study.md").read_text().split("## ")[1].splitlines()
    heading, *rows = [line.split(" | ") for line in lines if line.startswith("| ")]
    rows = {row[0].removeprefix("| "): row for row in rows}
    for name in tokenizers:
        (folder,) = (out / "tokenizers").glob(name.replace(" ", "_") + "*")
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        row = rows[f"{name}, tokenizer alone"]
        for column, key in (("loss ↓", "reconstruction_loss"), ("perplexity ↑", "codebook_perplexity")):
            assert float(row[heading.index(column)]) == pytest.approx(log[-2][f"validation_{key}"], rel=5e-3)
    assert rows["real split half"][heading.index("loss ↓")] == "–"
    assert "mean over" not in (out / "study.md").read_text()  # there are no priors to take means of


@pytest.mark.parametrize(("weights", "loss"), [("last", 2.0), ("best", 1.0)])
def test_numbers_of_a_training(tmp_path, weights, loss):
    lines = [
        *({"step": 10 * i, "seconds": seconds} for i, seconds in ((1, 6.0), (2, 600.0), (3, 6.0))),
        {"step": 30, "validation_loss": 1.5, "validation_reconstruction_loss": 1.0},
        {"step": 35, "seconds": 3.0},
        {"step": 35, "validation_loss": 2.5, "validation_reconstruction_loss": 2.0},
        {"step": 35, "finished": True},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "settings.yaml").write_text(f"final_weights: {weights}\n")
    found = training_numbers(tmp_path).set_index("metric")["value"]
    assert found.to_dict() == {"reconstruction_loss": loss, "training_minutes": pytest.approx(35 * 0.6 / 60)}


def test_names_follow_what_has_an_effect(written, content, tmp_path):
    def folders(**changes):
        return [t.folder.name for t in plan(read_study(written(**changes)))[0]]

    first = folders()
    assert len(first) == len(set(first)) == 4
    assert folders(output_dir=str(tmp_path), evaluation_seeds=2) == first
    assert folders(prior={**content["prior"], "log_every": 3, "save_every": 2}) == first
    changed = folders(prior={**content["prior"], "learning_rate": 1e-5})
    assert [a == b for a, b in zip(first, changed, strict=True)] == [True, False, True, False]
    changed = folders(tokenizer={**content["tokenizer"], "learning_rate": 1e-5})
    assert not set(first) & set(changed)  # a prior over another tokenizer is another prior


def test_own_settings_win_over_shared_ones(written, content):
    changes = {"tokenizer": {**content["tokenizer"], "model": {**SIZES, **CODERS, "n_latents": 2}}}
    own = {"shared": {}, "own": {"model.n_latents": 5, "batch_size": 7}}
    trainings, _ = plan(read_study(written(**changes, tokenizers=own, heads=["mse"], priors={})))
    assert [(t.settings.model["n_latents"], t.settings.batch_size) for t in trainings] == [(5, 7), (2, 32)]  # by name


def test_without_a_tokenizer_there_is_no_head(written, content):
    trainings, left_out = plan(read_study(written(tokenizers={**content["tokenizers"], "none": "counts"})))
    own = [t for t in trainings if t.labels["tokenizer"] == "none"]
    assert [(t.stage, t.labels["prior"], t.labels["head"]) for t in own] == [
        ("prior", "AR", "counts"),
        ("prior", "flow", "counts"),
    ]
    assert {t.settings.tokenizer for t in own} == {"counts"}
    assert len(left_out) == 1


def test_out_of_time_it_writes_what_there_is(written, tmp_path, calls):
    out = run_study(read_study(written(max_minutes=1e-9, output_dir=str(tmp_path))))
    assert not calls
    assert "## All systems" in (out / "study.md").read_text()


def test_what_is_wrong_is_said_before_anything_is_trained(written, content, tmp_path, run, calls):
    for changes, message in (
        ({"head": ["mse"]}, "unknown key 'head' in a study. Did you mean 'heads'"),
        ({"heads": ["mes"]}, "unknown head 'mes'. Did you mean 'mse'"),
        ({"heads": []}, "heads is not set"),
        ({"priors": {}, "tokenizers": {"none": "counts"}}, "nothing to compare but priors; add priors:"),
        ({"priors": {"AR": 3}}, "priors must hold lines `name: {setting: value}`"),
        ({"priors": {"flow": {"model_type": "evae_flow"}}}, "no prior of the study fits any of its tokenizers"),
        ({"prior": {"model": {"hiden_size": 3}}}, "unknown setting 'model.hiden_size'. Did you mean 'hidden_size'"),
        ({"prior": {"seed": 3}}, "seed is set by the study"),
        ({"tokenizer": {"config": "smal"}}, "no preset 'smal'"),
        ({"dataset": str(tmp_path)}, "not a dataset folder"),
        ({"suite": "robst"}, "unknown suite 'robst'"),
    ):
        outcome = run("study", written(**changes))
        assert outcome.code == 2, changes
        assert message in outcome.err
        assert len(outcome.err.splitlines()) == 1
    assert "no such file" in run("study", tmp_path / "no.yaml").err
    assert "write key=value" in run("study", written(), "seeds").err
    assert not calls


def test_two_ranks_share_the_work(written, tmp_path):
    changes = {"output_dir": str(tmp_path / "out"), "heads": ["mse"]}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, "-m", "evae.cli", "study", str(written(**changes))],
        env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 trainings on 2 ranks" in done.stdout
    out = tmp_path / "out"
    assert len(list(out.glob("results/FSQ-*.json"))) == 2
    assert len(list(out.glob("results/baselines-*.json"))) == 1
    for log in out.glob("*/*/log.jsonl"):
        assert [json.loads(line).get("finished") for line in log.read_text().splitlines()].count(True) == 1
    assert "FSQ + AR" in (out / "study.md").read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "scripts" / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_stored_studies_are_whole(path, screen_dataset):
    study = read_study(path, [f"dataset={screen_dataset}"])
    trainings, _ = plan(study)
    assert {t.labels.get("prior") for t in trainings} - {None} == set(study.priors)
    if len(study.heads) > 1:  # the design space as published
        assert set(study.priors) >= {"AR", "MDLM", "flow"}
        assert {t.labels["head"] for t in trainings} == {"ce-quantile", "hurdle", "mse", "nb"}
    assert len(study.seeds) >= 2


def test_scores_over_heads():
    key = ("diversity", "pooled", "variance_ratio")
    rows = [("A", 0, "mse", 0.2), ("A", 0, "nb", 1.5), ("A", 0, "ce-quantile", 1.0), ("B", 0, "mse", 1.1)]
    table = pd.DataFrame(rows, columns=["system", "seed", "head", "value"])
    table[["group", "level", "metric"]] = key
    # B lacks heads, so it is left out; distances from 1 are 0.8, 0.5, 0
    np.testing.assert_allclose(scaled_over_heads(table, key, ["mse", "nb", "ce-quantile"]), [0, 0.375, 1], atol=1e-9)
    assert np.isnan(scaled_over_heads(table, key, ["mse", "hurdle"])).all()
