"""`evae push`: what arrives on the Hub, what is refused, and what the user reads when the Hub says no."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file, save_file

import evae
from evae.hub import push_dataset, push_run
from evae.training.settings import load_settings

WRITER, READER, STRANGER = "hf_writer", "hf_reader", "hf_stranger"
REPO = "evae/replogle-ar"


@pytest.fixture
def folder(trained_prior: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "run"
    shutil.copytree(trained_prior, copy, ignore=shutil.ignore_patterns("checkpoints"))
    return copy


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """A folder as `evae evaluate` writes it, as far as a card needs it."""
    row = {"system": "model", "group": "paper", "level": "pooled", "metric": "fd", "value": 3.25}
    (tmp_path / "evaluation" / "plots").mkdir(parents=True)
    (tmp_path / "evaluation" / "result.json").write_text(json.dumps({"summary": [row]}))
    (tmp_path / "evaluation" / "plots" / "radar.png").write_bytes(b"PNG")
    return tmp_path / "evaluation"


def test_pushed_model_is_the_local_one(hub, login, trained_prior, result, run, pipe):
    login(WRITER)
    done = run("push", trained_prior, REPO, "--result", result, "--dataset", "evae/replogle")
    assert done.code == 0, done.err
    assert "in one commit" in done.out
    repo = hub.repo(REPO)
    assert not repo.private
    assert len(repo.titles) == 2  # the Hub's own first commit, and ours
    files = repo.files()
    for name, content in files.items():
        if not name.startswith(("README.md", "training/", "evaluation/", ".eval_results/")):
            assert content == (trained_prior / name).read_bytes(), name
    expected = {"config.json", "generation_config.json", "preprocessor_config.json", "README.md"}
    expected |= {"model.safetensors", "effects.safetensors"}
    expected |= {
        ".eval_results/evae.yaml",
        "training/settings.yaml",
        "evaluation/result.json",
        "evaluation/plots/radar.png",
    }
    assert expected | {f.name for f in trained_prior.glob("*.py")} == set(files)
    assert not any(str(trained_prior.parent).encode() in content for content in files.values())
    settings = yaml.safe_load(files["training/settings.yaml"])
    assert (settings["dataset"], settings["tokenizer"]) == ("evae/replogle", "tokenizer")
    card = ModelCard(files["README.md"].decode()).data
    assert (card.license, card.library_name, card.datasets) == ("mit", "evae", ["evae/replogle"])
    assert card.eval_results is None  # of data on the Hub, they stand where its leaderboard finds them
    (entry,) = yaml.safe_load(files[".eval_results/evae.yaml"])
    assert (entry["dataset"], entry["value"]) == ({"id": "evae/replogle", "task_id": "paper_fd"}, 3.25)
    assert "[evae/replogle](https://huggingface.co/datasets/evae/replogle)" in files["README.md"].decode()
    assert "| FD ↓ | 3.25 | not published | not published |" in files["README.md"].decode()
    loaded = evae.pipeline(REPO, device="cpu").model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in pipe.model.state_dict().items())


def test_the_card_and_the_numbers_name_the_commit_of_the_data(
    hub, login, trained_prior, screen_dataset, result, run, tmp_path
):
    login(WRITER)
    push_dataset(screen_dataset, "evae/replogle")
    card = tmp_path / "card.md"
    done = run("push", trained_prior, REPO, "--result", result, "--dataset", "evae/replogle", "--save-card", card)
    assert done.code == 0, done.err
    commit = HfApi().dataset_info("evae/replogle").sha
    files = hub.repo(REPO).files()
    assert card.read_bytes() == files["README.md"]
    there = f"[evae/replogle](https://huggingface.co/datasets/evae/replogle) at commit [{commit[:8]}]"
    assert f"{there}(https://huggingface.co/datasets/evae/replogle/tree/{commit})" in files["README.md"].decode()
    (entry,) = yaml.safe_load(files[".eval_results/evae.yaml"])
    assert entry["dataset"]["revision"] == commit


def test_data_of_another_gene_panel_are_not_what_it_was_trained_on(
    hub, login, trained_prior, screen_dataset, run, tmp_path
):
    login(WRITER)
    other = Path(shutil.copytree(screen_dataset, tmp_path / "other"))
    genes = pq.read_table(other / "genes.parquet")
    pq.write_table(genes.take(list(range(len(genes)))[::-1]), other / "genes.parquet")
    HfApi().create_repo("evae/other", repo_type="dataset")
    HfApi().upload_folder(repo_id="evae/other", folder_path=other, repo_type="dataset")
    refused = run("push", trained_prior, REPO, "--dataset", "evae/other")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "evae/other has another gene panel" in refused.err


def test_the_settings_that_go_train_again(hub, login, trained_tokenizer, trained_prior, tmp_path):
    """As the card says: `evae train STAGE --config training/settings.yaml ...`."""
    login(WRITER)
    for kind, folder in (("tokenizer", trained_tokenizer), ("prior", trained_prior)):
        push_run(folder, f"evae/{kind}")
        (tmp_path / "settings.yaml").write_bytes(hub.repo(f"evae/{kind}").files()["training/settings.yaml"])
        again = load_settings(kind, tmp_path / "settings.yaml", ["output_dir=out"])
        assert again.model == load_settings(kind, folder / "settings.yaml").model


def test_several_datasets(hub, login, folder, run, tmp_path):
    """Those on the Hub stand in the card, all of them in the settings and in the command that trains again."""
    login(WRITER)
    places = ["evae/replogle", str(tmp_path / "own")]
    (tmp_path / "own").mkdir()
    settings = yaml.safe_load((folder / "settings.yaml").read_text())
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings | {"dataset": places, "dataset_weights": [3, 1]}))
    for given, names in (
        ([], ["evae/replogle", "own"]),
        (["evae/replogle", "evae/own"], ["evae/replogle", "evae/own"]),
    ):
        done = run("push", folder, "me/two", *(f"--dataset={name}" for name in given), "--dry-run")
        assert done.code == 0, done.err
        push_run(folder, "evae/two", dataset_id=given)
        files = hub.repo("evae/two").files()
        assert yaml.safe_load(files["training/settings.yaml"])["dataset"] == names
        text = files["README.md"].decode()
        assert ModelCard(text).data.datasets == [name for name in names if "/" in name]
        local = [name if "/" in name else f"data/{name}" for name in names]
        assert f"--config training/settings.yaml 'dataset=[{','.join(local)}]' tokenizer=runs/tokenizer" in text
    refused = run("push", folder, "me/two", "--dataset", "evae/replogle")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "1 Hub id for the 2 datasets" in refused.err


def test_dry_run_sends_nothing(hub, login, trained_prior, run):
    login(None)
    done = run("push", trained_prior, REPO, "--dry-run")
    assert done.code == 0, done.err
    assert "model.safetensors" in done.out
    assert "nothing was sent" in done.out
    assert "log.jsonl" not in done.out
    assert not hub.requests


def test_second_push_replaces_the_first(hub, login, folder):
    login(WRITER)
    evae.EvaeARForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink()
    push_run(folder, REPO)
    assert "model.safetensors.index.json" in hub.repo(REPO).files()
    HfApi(token=WRITER).upload_file(path_or_fileobj=b"mine", path_in_repo="NOTES.txt", repo_id=REPO)
    for file in folder.glob("model*"):
        file.unlink()
    evae.EvaeARForCausalLM.from_pretrained(REPO).save_pretrained(folder)
    push_run(folder, REPO)
    files = hub.repo(REPO).files()
    assert [n for n in files if n.startswith("model") and ("index" in n or n.endswith("safetensors"))] == [
        "model.safetensors"
    ]
    assert files["NOTES.txt"] == b"mine"


def test_tokenizer(hub, login, trained_tokenizer):
    login(WRITER)
    push_run(trained_tokenizer, "evae/replogle-tokenizer", private=True)
    repo = hub.repo("evae/replogle-tokenizer")
    assert repo.private
    assert ModelCard(repo.files()["README.md"].decode()).data.pipeline_tag == "feature-extraction"
    assert not evae.pipeline("evae/replogle-tokenizer").checkpoint.is_prior


def refusal(*arguments, **options) -> str:
    with pytest.raises(evae.EvaeError) as caught:
        push_run(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestRefusals:
    """Nothing of these reaches the Hub."""

    @pytest.fixture(autouse=True)
    def nothing_is_sent(self, hub, login):
        login(WRITER)
        yield
        assert not hub.repos

    def test_weights_that_do_not_load(self, folder):
        tensors = load_file(folder / "model.safetensors")
        del tensors["lm_head.weight"]
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        assert "lack 1 tensor of" in refusal(folder, REPO)

    def test_weights_that_do_not_generate(self, folder):
        tensors = load_file(folder / "model.safetensors")
        tensors["lm_head.weight"].fill_(torch.nan)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        assert "has weights that are NaN or infinite (lm_head.weight)" in refusal(folder, REPO)

    def test_model_that_draws_nothing(self, folder, monkeypatch):
        def nothing(self, library_size, **conditions):
            return torch.zeros(len(library_size), self.tokenizer.config.n_genes)

        monkeypatch.setattr(evae.EvaeARForCausalLM, "sample_cells", nothing)
        assert "generates empty or broken cells" in refusal(folder, REPO)

    def test_model_that_cannot_draw(self, folder, monkeypatch):
        monkeypatch.setattr(
            evae.EvaeARForCausalLM, "sample_cells", lambda self, **conditions: torch.ones(2) @ torch.ones(3)
        )
        assert "loads but does not generate" in refusal(folder, REPO)

    def test_code_that_is_missing(self, folder):
        (folder / "modeling_evae_ar.py").unlink()
        assert "modeling_evae_ar.py is missing" in refusal(folder, REPO)

    @pytest.mark.parametrize("secret", ["hf_" + "a1B2" * 9, "/home/somebody/data", "/root/cells"])
    def test_secrets_and_local_paths(self, folder, secret):
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(content | {"note": f"from {secret}"}))
        assert "config.json holds" in refusal(folder, REPO)

    def test_wrong_names(self, folder, trained_tokenizer, tmp_path):
        assert "no such folder" in refusal(tmp_path / "nothing", REPO)
        assert "is no Hub id" in refusal(folder, "replogle-ar")
        assert "there is no model card 'replogle-a'" in refusal(folder, REPO, card="replogle-a")
        assert "the card 'replogle-ar' is for evae_ar, the model is evae" in refusal(trained_tokenizer, REPO)
        assert "there is no result at" in refusal(folder, REPO, result=tmp_path)


class TestWhatTheHubSays:
    def line(self, run, folder, *options) -> str:
        done = run("push", folder, REPO, *options)
        assert done.code == 2
        assert done.err.count("\n") == 1
        return done.err

    def test_tokens(self, hub, login, trained_prior, run):
        assert "pushing needs a login; log in with `hf auth login`" in self.line(run, trained_prior)
        login("hf_expired")
        assert "the Hub does not accept your token" in self.line(run, trained_prior)
        for token in (READER, STRANGER):
            login(token)
            assert "your token may not do this to 'evae/replogle-ar'" in self.line(run, trained_prior)
        assert not hub.repos

    def test_private_is_never_put_into_a_public_repository(self, hub, login, trained_prior, run):
        login(WRITER)
        HfApi().create_repo(REPO)
        assert "exists and is public" in self.line(run, trained_prior, "--private")
        assert not hub.repo(REPO).files()

    def test_someone_else_commits_at_the_same_time(self, hub, hub_module, login, trained_prior, run):
        login(WRITER)
        hub.faults.append(hub_module.Fault(412, path="/commit/"))
        assert "someone else wrote to 'evae/replogle-ar' at the same time; retry" in self.line(run, trained_prior)

    @pytest.mark.parametrize("path", ["/api/repos/create", "/preupload/", "/objects/batch", "/stored/", "/commit/"])
    def test_trouble_at_every_step(self, hub, hub_module, login, trained_prior, run, path):
        login(WRITER)
        hub.faults.append(hub_module.Fault(503, path=path))
        assert "the Hub has trouble at the moment (status 503)" in self.line(run, trained_prior)
        assert all(not repo.files() for repo in hub.repos.values())

    def test_no_network(self, hub, login, trained_prior, run):
        login(WRITER)
        hub.stop()
        assert "the Hub cannot be reached" in self.line(run, trained_prior)
