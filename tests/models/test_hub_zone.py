"""The folder of models as the Hub sees it: flat files that run where the package is not installed."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

import evae.models
from evae.models import EvaeARConfig, EvaeARForCausalLM, EvaeConfig, EvaeFlowModel, EvaeMDLMModel, EvaeModel

ZONE = Path(evae.models.__file__).parent
SCRIPT = Path(__file__).with_name("without_package.py")
ALLOWED = {*sys.stdlib_module_names, "numpy", "torch", "transformers"}
LIBRARY = {"tokenizer": {"condition_on_library": True, "standardize_latents": True}}


def imports(file):
    """Every import of a file as (level, module), those under `try` and inside functions included."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.level, node.module
        elif isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)


class TestFiles:
    def test_imports_are_flat_siblings_or_what_transformers_users_have(self):
        names = {file.stem for file in ZONE.glob("*.py")}
        for file in ZONE.glob("*.py"):
            for level, module in imports(file):
                assert level < 2, (file.name, module)
                assert (module if level else module.partition(".")[0]) in (names if level else ALLOWED)
        assert not [path for path in ZONE.iterdir() if path.is_dir() and path.name != "__pycache__"]

    def test_entry_files_import_all_that_they_need(self):
        """From a local folder, transformers up to 5.0 copies only what the entry file itself imports."""
        direct = {f.stem: {module for level, module in imports(f) if level} for f in ZONE.glob("*_evae*.py")}
        for entry in (name for name in direct if name.startswith(("modeling", "configuration", "processing"))):
            needed = set(direct[entry])
            while more := set().union(*(direct[name] for name in needed)) - needed:
                needed |= more
            assert direct[entry] == needed, entry

    def test_files_say_whose_they_are(self):
        """Code of several repositories shares one cache folder, so names must not be common ones."""
        assert all("_evae" in file.stem or file.stem == "__init__" for file in ZONE.glob("*.py"))


@pytest.fixture
def folders(tiny_prior, processor, tmp_path, misalign):
    """Folders of a tokenizer and of the three priors, each with the processor; weights lie where they should not."""
    prior = tiny_prior(**LIBRARY)
    mdlm, flow = (tiny_prior(kind=kind, **LIBRARY) for kind in ("mdlm", "flow"))
    models = {"tokenizer": prior.tokenizer, "prior": prior, "mdlm": mdlm, "flow": flow}
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
        misalign(tmp_path / name)
    return tuple(tmp_path / name for name in models)


class TestSavedFolder:
    def test_is_self_contained(self, folders):
        code = {"configuration_evae.py", "contract_evae.py", "modeling_evae.py", "processing_evae.py"}
        for folder in folders:
            names = {path.name for path in folder.iterdir()}
            assert code | {"config.json", "model.safetensors", "preprocessor_config.json"} <= names
            assert not [name for name in names if not name.endswith((".py", ".json", ".safetensors"))]
            for file in folder.glob("*.py"):
                assert file.read_text() == (ZONE / file.name).read_text()
                siblings = {f"{module}.py" for level, module in imports(file) if level}
                assert siblings <= names
            references = json.loads((folder / "config.json").read_text())["auto_map"]
            assert ("AutoModelForCausalLM" in references) is (folder.name == "prior")
            references |= json.loads((folder / "preprocessor_config.json").read_text())["auto_map"]
            for reference in references.values():
                module, name = reference.split(".")
                assert f"class {name}(" in (folder / f"{module}.py").read_text()
            assert {"AutoConfig", "AutoModel", "AutoProcessor", "AutoFeatureExtractor"} <= references.keys()

    def test_holds_no_local_path(self, folders, tmp_path):
        tokenizer = EvaeModel.from_pretrained(folders[0])
        prior = EvaeARForCausalLM(EvaeARConfig(tokenizer_config=tokenizer.config))
        prior.save_pretrained(tmp_path / "trained")
        for folder in (*folders, tmp_path / "trained"):
            for file in folder.glob("*.json"):
                assert str(tmp_path) not in file.read_text()
            for file in folder.glob("*.py"):
                assert "/home/" not in file.read_text()
                assert str(Path(__file__).parents[2]) not in file.read_text()

    def test_options_of_save_pretrained_pass_through(self, tiny_prior, tmp_path):
        prior = tiny_prior()
        prior.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
        assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
        loaded = EvaeARForCausalLM.from_pretrained(tmp_path / "shards").state_dict()
        assert all(torch.equal(loaded[k], v) for k, v in prior.state_dict().items())
        changed = {k: v + 1 for k, v in prior.state_dict().items()}
        prior.save_pretrained(tmp_path / "state", state_dict=changed)
        loaded = EvaeARForCausalLM.from_pretrained(tmp_path / "state").state_dict()
        assert all(torch.equal(loaded[k], v) for k, v in changed.items())


class TestWithThePackage:
    def test_auto_classes_give_the_package_s_own(self, folders):
        tokenizer, prior, mdlm, flow = folders
        assert type(AutoConfig.from_pretrained(tokenizer)) is EvaeConfig
        assert type(AutoConfig.from_pretrained(prior)) is EvaeARConfig
        assert type(AutoModel.from_pretrained(tokenizer)) is EvaeModel
        assert type(AutoModel.from_pretrained(prior)) is EvaeARForCausalLM
        assert type(AutoModelForCausalLM.from_pretrained(prior)) is EvaeARForCausalLM
        assert type(AutoModel.from_pretrained(mdlm)) is EvaeMDLMModel
        assert type(AutoModel.from_pretrained(flow)) is EvaeFlowModel

    def test_attention_reaches_the_nested_tokenizer(self, folders):
        for implementation in ("eager", "sdpa"):
            prior = AutoModel.from_pretrained(folders[1], attn_implementation=implementation)
            assert prior.config._attn_implementation == implementation
            assert prior.tokenizer.config._attn_implementation == implementation

    def test_device_map(self, folders, cells):
        prior = AutoModel.from_pretrained(folders[1], device_map="cpu")
        expected = AutoModel.from_pretrained(folders[1])
        assert torch.equal(prior.tokenizer.encode(cells), expected.tokenizer.encode(cells))

    def test_meta_device(self, tiny_config):
        """Loading builds on the meta device first: nothing may compute with a tensor there."""
        with torch.device("meta"):
            prior = EvaeARForCausalLM(EvaeARConfig(tokenizer_config=tiny_config(standardize_latents=True)))
        assert {p.device.type for p in prior.parameters()} == {"meta"}


def test_without_the_package(folders, cells, tmp_path):
    """Auto classes with `trust_remote_code`, and copies saved from remote code, give the same bits."""
    inputs = {
        "counts": cells,
        "codes": torch.tensor([[3, 0, 14, 7], [1, 1, 2, 9]]),
        "perturbation_ids": torch.tensor([2, 0]),
        "cell_type_ids": torch.tensor([0, 1]),
        "library_size": torch.tensor([40.0, 90.0]),
        "latents": torch.linspace(-2, 2, 24).view(2, 4, 3),
    }
    save_file(inputs, tmp_path / "inputs.safetensors")
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, folders), "../inputs.safetensors", "../outputs.safetensors"],
        cwd=tmp_path / "elsewhere",
        env={**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = load_file(tmp_path / "outputs.safetensors")
    expected = expected_outputs(folders, inputs)
    assert len(found) == 2 * len(expected)
    for key, value in expected.items():
        for name in ("first", "copy"):
            assert torch.equal(found[f"{name}.{key}"], value), (name, key)


def expected_outputs(folders, inputs):
    """What the package itself gives, by the lines of the script."""
    sys.path.insert(0, str(SCRIPT.parent))
    hooks = list(sys.meta_path)
    try:
        import without_package
    finally:
        sys.path.pop(0)
        sys.meta_path[:] = hooks  # the script's blocker stays in its own process
    without_package.REMOTE = {}
    found = without_package.outputs(folders, inputs, "here")
    return {key.removeprefix("here."): value for key, value in found.items()}
