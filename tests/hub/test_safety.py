"""What a stranger's repository must not do: write outside the cache, take the memory, run code, carry files off."""

import json
import re
import resource
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

import evae
from evae.hub import push_dataset
from evae.hub.upload import LOCAL_PATH, TOKEN

WRITER = "hf_writer"
ROOT = Path(__file__).parents[2]


def everything(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def refusal(name: str | Path) -> str:
    with pytest.raises(evae.EvaeError) as caught:
        evae.pipeline(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestNamesFromTheNetwork:
    @pytest.mark.parametrize(
        "name", ["../../../../evil.json", "a/../../../../../evil.json", "/evil.json", "..\\..\\evil.json", "..", "."]
    )
    def test_file_names(self, on_the_hub, hub, hub_module, tmp_path, name):
        """Whether such a file is refused or left out, nothing lies outside the cache afterwards."""
        repo = hub.repo(on_the_hub)
        repo.commit("main", {**repo.commits[repo.find("main")], name: hub_module.Blob(b"{}", lfs=False)}, "evil")
        before = everything(tmp_path)
        with suppress(evae.EvaeError):  # and nothing else
            evae.pipeline(on_the_hub)
        new = everything(tmp_path) - before
        assert any("/revision/" in path or "/tree/" in path for _, path in hub.requests)
        assert all(path.is_relative_to(constants.HF_HUB_CACHE) for path in new)
        assert not any(
            "evil" in path.name and not path.resolve().is_relative_to(constants.HF_HUB_CACHE) for path in new
        )

    @pytest.mark.parametrize("header", ["X-Repo-Commit", "ETag", "X-Linked-Etag"])
    def test_headers(self, on_the_hub, hub, hub_module, tmp_path, header):
        hub.faults.append(hub_module.Fault(path="/resolve", headers={header: '"../../../../../evil"'}))
        before = everything(tmp_path)
        with suppress(evae.EvaeError):  # and nothing else
            evae.pipeline(on_the_hub)
        assert all(path.is_relative_to(constants.HF_HUB_CACHE) for path in everything(tmp_path) - before)

    def test_shards_of_weights(self, trained_prior, tmp_path):
        folder = copied(trained_prior, tmp_path)
        (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
        index = {"metadata": {}, "weight_map": {"lm_head.weight": "../elsewhere.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        assert "names ../elsewhere.safetensors, which is no file of that folder" in refusal(folder)

    def test_shards_of_a_dataset_do_not_carry_files_off(self, screen_dataset, hub, login, tmp_path):
        login(WRITER)
        folder = Path(shutil.copytree(screen_dataset, tmp_path / "dataset"))
        (tmp_path / "secret.parquet").write_bytes(b"mine")
        meta = json.loads((folder / "dataset.json").read_text())
        meta["shards"][0]["path"] = "data/../../secret.parquet"
        (folder / "dataset.json").write_text(json.dumps(meta))
        with pytest.raises(evae.EvaeError, match=r"names a shard data/\.\./\.\./secret\.parquet"):
            push_dataset(folder, "evae/screen")
        assert not hub.requests


def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoints")))


class TestWeightsAndConfiguration:
    """A configuration that does not fit the weights is refused by their headers, before it takes memory."""

    @pytest.mark.parametrize(
        ("field", "size", "line"),
        [
            ("hidden_size", 10**9, "asks for at least 1"),
            (
                "n_perturbations",
                100_000_000,
                r"condition.perturbation.weight is [6, 16] in the weights, [100000001, 16] by",
            ),
            ("num_hidden_layers", 2, "the weights lack "),
        ],
    )
    def test_is_refused(self, trained_prior, tmp_path, field, size, line):
        folder = copied(trained_prior, tmp_path)
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**content, field: size}))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert line in refusal(folder)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB; the table would take 6 GB

    def test_code_of_another_repository_is_not_run(self, on_the_hub, hub, trained_prior, tmp_path):
        folder = copied(trained_prior, tmp_path)
        content = json.loads((folder / "config.json").read_text())
        content["auto_map"] = dict.fromkeys(content["auto_map"], "evil/code--modeling.Evil")
        HfApi(token=WRITER).upload_file(
            path_or_fileobj=json.dumps(content).encode(), path_in_repo="config.json", repo_id=on_the_hub
        )
        assert type(evae.pipeline(on_the_hub).model) is evae.EvaeARForCausalLM
        assert not any("evil" in path for _, path in hub.requests)


class TestOurFiles:
    def files(self) -> list[Path]:
        return [
            path for place in ("src", "scripts", "model_cards") for path in (ROOT / place).rglob("*") if path.is_file()
        ]

    def test_no_pickle(self):
        pickling = re.compile(
            r"torch\.(save|load)\(|\b(import|from)\s+pickle\b|\bpickle\.\w+\(|read_pickle|joblib|allow_pickle=True|"
            r"\bdill\b|cloudpickle|shelve"
        )
        for path in self.files():
            if path.suffix == ".py":
                found = pickling.search(re.sub(r'""".*?"""', "", path.read_text(), flags=re.DOTALL))
                assert found is None, (path, found)
        listed = subprocess.run(
            ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
        ).stdout.split()
        listed += [str(path) for path in self.files()]
        assert not [
            name for name in listed if name.endswith((".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy"))
        ]

    def test_code_that_is_pushed_holds_no_secret_and_no_local_path(self):
        code = [path for path in self.files() if path.parent.name == "models" or path.suffix in (".md", ".yaml")]
        assert len(code) > 15
        for path in code:
            text = path.read_text()
            assert not TOKEN.search(text), path
            assert not LOCAL_PATH.search(text), path
            assert str(ROOT) not in text, path


def test_tokens_and_paths_are_recognised():
    """What the search above, and every push, looks for."""
    assert TOKEN.search("token = hf_" + "a" * 34)
    for path in ("/home/a/b", "/Users/a", "/root/x", "C:\\Users\\a", "see /tmp/run1", "/private/var"):
        assert LOCAL_PATH.search(path), path
    for text in ("https://example.org/home/page", "src/home/x", "and/or", "hf.co/tmp/x"):
        assert not LOCAL_PATH.search(text), text
