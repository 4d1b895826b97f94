"""`evae study`: trains what is missing, evaluates all alike, writes the tables; interrupted, it goes on."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from evae.data.format import DatasetInfo
from evae.data.preparing.prepare import prepare_dataset
from evae.data.simulation.perturb_seq import simulate_perturb_seq
from evae.data.simulation.vectors import simulated_vectors
from evae.effects import estimate_effects
from evae.study import read_study, run_study
from evae.study import run as study_run
from evae.study.figures import scaled_over_heads
from evae.study.heads import head_ranks, rank_lines
from evae.study.plan import plan
from evae.study.questions import question_of
from evae.study.results import training_numbers
from evae.training.resume.folder_lock import FolderLock

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
    assert "FSQ + flow was left out: the flow prior needs latents" in capsys.readouterr().err
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
        ({"sampling": {"told": {"effects_by": "rige"}}}, "unknown effects_by 'rige'. Did you mean 'ridge'"),
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
    assert "2 trainings on 2 ranks" in done.stderr
    out = tmp_path / "out"
    assert len(list(out.glob("results/FSQ-*.json"))) == 2
    assert len(list(out.glob("results/baselines-*.json"))) == 1
    for log in out.glob("*/*/log.jsonl"):
        assert [json.loads(line).get("finished") for line in log.read_text().splitlines()].count(True) == 1
    assert "FSQ + AR" in (out / "study.md").read_text()


@pytest.mark.usefixtures("all_remarks")
def test_splits_in_turn(written, content, screen_file, tmp_path, calls, capsys):
    prepare = {"files": str(screen_file), "control": "control"}
    changes = {
        "dataset": "", "heads": ["mse"], "seeds": [0, 1], "output_dir": str(tmp_path), "prepare": prepare,
        "priors": {"AR": {"model_type": "evae_ar"}}, "suite": "robust",
        "splits": {"each": "leave-one-cell-type-out", "as prepared": {"dataset": content["dataset"]}},
    }  # fmt: skip
    out = run_study(read_study(written(**changes, max_minutes=1e-9)))
    assert "# Study of 3 splits" in (out / "study.md").read_text()  # nothing else is known yet
    out = run_study(read_study(written(**changes)))
    names = ["as prepared", "each: type_A", "each: type_B"]
    numbers = pd.read_csv(out / "study.csv")
    assert list(dict.fromkeys(numbers["split"])) == names
    found = [DatasetInfo.load(folder) for folder in sorted(out.glob("datasets/[!.]*"))]
    assert [info.split["cell_type"] for info in found] == [["type_A"], ["type_B"]]
    assert all(len(info.split["pert"]) == 4 for info in found)
    assert len(list(out.glob("priors/*"))) == len(list(out.glob("tokenizers/*"))) == 6
    text = (out / "study.md").read_text()
    assert [f"## {name}: all systems" in text for name in names] == [True] * 3
    pairs = pd.read_csv(out / "pairs.csv")
    assert pairs[["split", "cell_type", "perturbation"]].drop_duplicates().shape[0] == 4 + 4 + 2
    fd = numbers[(numbers["group"] == "robust") & (numbers["level"] == "pooled") & (numbers["metric"] == "fd")]
    of_model = fd[fd["system"] == "FSQ + AR"].groupby("split")["value"].mean()
    rows = text.split("## FD ↓ by split")[1].split("## ")[0].splitlines()
    row = next(line for line in rows if line.startswith("| FSQ + AR")).split(" | ")[1:4]
    np.testing.assert_allclose([float(x) for x in row], [of_model[name] for name in names], rtol=5e-3)
    rivals = fd[~fd["system"].isin(["real split half", "FSQ, tokenizer alone"])]
    best = rivals.groupby(["split", "system"])["value"].mean().unstack("system").idxmin(axis=1)
    won = text.split("## Wins")[1].split("## ")[0].splitlines()
    for system, n in best.value_counts().items():
        assert next(line for line in won if line.startswith(f"| {system} |")).split(" | ")[1] == str(n)
    calls.clear()
    run_study(read_study(written(**changes)))
    assert not calls
    assert capsys.readouterr().err.count("preparing") == 2  # once for each of the two, in the first call


def test_what_is_wrong_with_splits_is_said_first(written, screen_file, tmp_path, run, calls):
    prepare = {"files": str(screen_file), "control": "control"}
    for changes, message in (
        ({"splits": 3}, "splits must hold lines `name: split`"),
        ({"splits": ["unseen-cell-type:type_B"]}, "prepare.files is not set"),
        ({"splits": ["unseen-cell-type:tipe_B"], "prepare": prepare}, "unknown cell type 'tipe_B'. Did you mean"),
        ({"splits": ["random:0.1"], "prepare": {**prepare, "gens": "all"}}, "unknown key 'gens' in prepare"),
        ({"splits": ["random:0.1"], "prepare": {**prepare, "control": "ctrl"}}, "control label 'ctrl'"),
        ({"splits": ["k-fold:2"], "prepare": {**prepare, "control": "ctrl"}}, "control label 'ctrl'"),
        ({"splits": {"a": {"dataset": str(tmp_path)}}}, "not a dataset folder"),
        (
            {"splits": ["k-fold:2"], "prepare": prepare, "extra_baselines": ["scvy"]},
            "unknown baseline 'scvy'. Did you mean",
        ),
        ({"splits": ["k-fold:2"], "prepare": prepare, "features": "no.csv"}, "feature table no.csv does not exist"),
    ):
        outcome = run("study", written(**{"dataset": "", "output_dir": str(tmp_path), **changes}))
        assert outcome.code == 2, changes
        assert message in outcome.err
        assert outcome.err.splitlines()[-1].startswith("error: ")
    assert not calls


@pytest.mark.usefixtures("all_remarks")
def test_what_another_process_trains_is_left_to_it(written, tmp_path, calls, capsys):
    study = read_study(written(output_dir=str(tmp_path), priors={"AR": {"model_type": "evae_ar"}}))
    first = plan(study)[0][0].folder
    other = FolderLock(first)  # stands for a process that trains there
    assert other.take() is None
    run_study(study)
    assert calls == ["FSQ-mse-seed0", "FSQ-ce_quantile-seed0", "FSQ-ce_quantile-AR-seed0", *["evaluation"] * 2]
    assert "another process trains it" in capsys.readouterr().err
    assert not (first / "model.safetensors").exists()
    other.release()
    calls.clear()
    run_study(study)
    assert calls == ["FSQ-mse-seed0", "FSQ-mse-AR-seed0", *["evaluation"] * 2]


def test_a_prior_that_cannot_know_a_perturbation_is_left_out_before_anything_is_trained(
    written, content, screen_file, screen, tmp_path
):
    name = next(p for p in screen.obs["perturbation"].cat.categories if p != "control")
    keys = {"perturbation_key": "perturbation", "cell_type_key": "cell_type", "control": "control"}
    folder = prepare_dataset(
        screen_file, tmp_path / "data", split=f"unseen-perturbation:{name}", progress=False, **keys
    )
    table = tmp_path / "features.csv"
    pd.DataFrame(np.eye(2), index=[name, "other"]).to_csv(table)
    priors = {"names": {"model_type": "evae_ar"}, "features": {"perturbation_features": str(table)}}
    trainings, left_out = plan(read_study(written(dataset=str(folder), priors=priors, heads=["mse"])))
    assert [t.labels["prior"] for t in trainings if t.stage == "prior"] == ["features"]
    assert len(left_out) == 1
    assert left_out[0].startswith(
        "FSQ + names was left out: a prior cannot learn perturbations without a training cell"
    )


def test_keys_of_keys_are_changed_on_the_command_line(written):
    study = read_study(written(prepare={"files": "a.h5ad", "control": "x"}), ["prepare.files=b.h5ad"])
    assert study.prepare == {"files": "b.h5ad", "control": "x"}


@pytest.mark.parametrize("path", sorted((ROOT / "scripts" / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_stored_studies_are_whole(path, screen_dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # with the feature tables that studies name
    pd.DataFrame(np.eye(2), index=["KO-A", "KO-B"]).to_csv("vectors.csv")
    np.savez("gene_features.npz", genes=np.array(["A", "B"]), emb=np.eye(2))
    study = read_study(path, [f"dataset={screen_dataset}"])
    trainings, _ = plan(study)
    assert {t.labels.get("prior") for t in trainings} - {None} == set(study.priors)
    if len(study.heads) > 1 and not path.stem.startswith("claim"):  # the design space as published
        assert set(study.priors) >= {"AR", "MDLM", "flow"}
        assert {t.labels["head"] for t in trainings} == {"ce-quantile", "hurdle", "mse", "nb"}
    assert len(study.seeds) >= 2


def test_ranks_of_heads_along_their_axis():
    """Richer heads are better by spread and worse by the mean; a seed without all heads is out."""
    rows = []
    values = {"mse": (0.2, 0.1), "nb": (0.8, 0.2), "ce-quantile": (1.0, 0.3)}
    for seed in (0, 1):
        for head, (ratio, error) in values.items():
            rows.append(("diversity", "pooled", "variance_ratio", seed, head, ratio))
            rows.append(("perturbation", "pair", "mse", seed, head, error))
    rows.append(("perturbation", "pair", "mse", 2, "mse", 9.0))
    table = pd.DataFrame(rows, columns=["group", "level", "metric", "seed", "head", "value"])
    table = table.assign(split="", system="FSQ + AR", prior="AR", tokenizer="FSQ")
    ranks = head_ranks(table).set_index(["group", "metric"])
    assert ranks.loc[("spread", "mean")].tolist() == [3, 2, 1]
    assert ranks.loc[("mean effect", "mean")].tolist() == [1, 2, 3]
    lines = rank_lines(head_ranks(table))
    assert [line.split("|")[-2].strip() for line in lines[2:]] == ["-1.00", "-1.00", "1.00", "1.00"]
    assert head_ranks(table[table["head"] == "mse"]).empty


def test_scores_over_heads():
    key = ("diversity", "pooled", "variance_ratio")
    rows = [("A", 0, "mse", 0.2), ("A", 0, "nb", 1.5), ("A", 0, "ce-quantile", 1.0), ("B", 0, "mse", 1.1)]
    table = pd.DataFrame(rows, columns=["system", "seed", "head", "value"])
    table[["group", "level", "metric"]] = key
    # B lacks heads, so it is left out; distances from 1 are 0.8, 0.5, 0
    np.testing.assert_allclose(scaled_over_heads(table, key, ["mse", "nb", "ce-quantile"]), [0, 0.375, 1], atol=1e-9)
    assert np.isnan(scaled_over_heads(table, key, ["mse", "hurdle"])).all()


def test_three_questions_of_one_split_with_effects_told_by_features(written, tmp_path, monkeypatch):
    cells = simulate_perturb_seq(n_cells=1600, n_genes=50, n_cell_types=2, n_perturbations=8, n_without_effect=0)
    cells.write_h5ad(tmp_path / "screen.h5ad")
    vectors = simulated_vectors(cells)
    vectors.to_csv(tmp_path / "vectors.csv")
    unseen = vectors.index[0]
    told = []
    draw = study_run.predict_held_out
    monkeypatch.setattr(
        study_run, "predict_held_out", lambda *a, **k: (told.append(k.get("effects")), draw(*a, **k))[1]
    )
    changes = {
        "dataset": "", "heads": ["mse"], "suite": "robust", "output_dir": str(tmp_path / "out"),
        "prepare": {"files": str(tmp_path / "screen.h5ad"), "control": "control"},
        "splits": {"all three": f"unseen-each:type_B:{unseen}"}, "features": str(tmp_path / "vectors.csv"),
        "priors": {"AR": {"perturbation_features": str(tmp_path / "vectors.csv"), "model.condition_on_effect": True}},
        "sampling": {"plain": {}, "told": {"effects_by": "ridge"}},
    }  # fmt: skip
    out = run_study(read_study(written(**changes)))
    plain, table = told
    assert plain is None
    expected = estimate_effects(next(out.glob("datasets/[!.]*")), list(table.index), features=tmp_path / "vectors.csv")
    pd.testing.assert_frame_equal(table, expected.log2_fold_changes)
    assert expected.source[unseen] == "ridge"
    pairs = pd.read_csv(out / "pairs.csv")
    asked = pairs[["cell_type", "perturbation", "question"]].drop_duplicates().set_index(["cell_type", "perturbation"])
    assert asked["question"]["type_A", unseen] == "unseen perturbation"
    assert asked["question"]["type_B", unseen] == "both unseen"
    assert (asked["question"] == "unseen cell type").sum() == 7
    text = (out / "study.md").read_text().split("## By what training has seen")[1]
    heading, _, *rows = [line for line in text.split("### ")[1].splitlines() if line.startswith("|")]
    assert "unseen cell type (7 pairs) | unseen perturbation (1 pair) | both unseen (1 pair)" in heading
    fd = pairs[(pairs["group"] == "robust") & (pairs["metric"] == "fd") & (pairs["system"] == "FSQ + AR (told)")]
    shown = next(row for row in rows if row.startswith("| FSQ + AR (told)")).split(" | ")
    assert float(shown[1]) == pytest.approx(fd[fd["question"] == "unseen cell type"]["value"].mean(), rel=5e-3)


def test_what_training_lacks_of_a_pair(screen_dataset):
    info = DatasetInfo.load(screen_dataset)
    table = {"A": {"control": 9, "X": 9, "Y": 9}, "B": {"control": 9, "X": 0}, "C": {"control": 9, "X": 9}}
    info = replace(info, control="control", statistics={**info.statistics, "cell_counts": {"train": table}})
    asked = [("C", "Y"), ("B", "X"), ("A", "X+Y"), ("A", "Z"), ("B", "Z"), ("A", "X+Z")]
    assert [question_of(info, *pair) for pair in asked] == [
        *("unseen pair", "unseen cell type", "unseen combination"),
        *("unseen perturbation", "both unseen", "unseen perturbation"),
    ]
