"""Every snippet of the README runs: the Python ones in order, the `evae` commands on a small screen."""

import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import pytest

from evae.cli import main
from evae.data.simulation.perturb_seq import simulate_perturb_seq
from evae.data.simulation.screen import simulate_reversion_screen
from evae.reversion import PRESETS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
HUB_ID = "evae/replogle-ar"
NAMES = ["non-targeting", "STAT1", "JAK2", "IRF1", "CUL3"]
LINES = {"type_A": "K562", "type_B": "RPE1"}
SMALLER = {"hvg:2000": "hvg:50", "500": "20"}


def snippets(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = [line.split("  #")[0].strip() for block in snippets("bash") for line in block.splitlines()]
    return [line for line in lines if line]


def published(tiny_checkpoint: Path, folder: Path) -> Path:
    """The tiny checkpoint with the labels of the README in the place of its own."""
    shutil.copytree(tiny_checkpoint, folder)
    file = folder / "preprocessor_config.json"
    content = json.loads(file.read_text())
    new = dict(zip(content["perturbations"], NAMES, strict=True)) | LINES

    def renamed(value: object) -> object:
        if isinstance(value, dict):
            return {new.get(k, k): renamed(v) for k, v in value.items()}
        return [renamed(v) for v in value] if isinstance(value, list) else new.get(value, value)

    file.write_text(json.dumps({key: renamed(value) for key, value in content.items()}))
    return folder


def challenge_bundle(cells: ad.AnnData, folder: Path) -> None:
    """Controls and lists as those of the Virtual Cell Challenge, with the lines as contexts."""
    controls = cells[cells.obs["perturbation"] == "non-targeting"].copy()
    controls.obs = controls.obs[["cell_type"]].rename(columns={"cell_type": "context"})
    controls.write_h5ad(folder / "controls.h5ad")
    (folder / "gene_names.csv").write_text("\n".join(["gene_name", *controls.var_names]))
    rows = [f"{target},{line},5" for line in LINES.values() for target in NAMES[1:]]
    (folder / "pert_counts.csv").write_text("\n".join(["target_gene,context,n_cells", *rows]))


def stress_screen(path: Path) -> None:
    """A reversion screen whose reverters have the names of the published positive controls."""
    cells = simulate_reversion_screen(1_500, seed=0, n_genes=60, n_targets=20)
    new = dict(zip(cells.uns["simulation"]["reverters"], PRESETS["telohaec"].positives, strict=True))
    cells.obs["gene_target"] = cells.obs["gene_target"].cat.rename_categories(new)
    cells.write_h5ad(path)


@pytest.fixture(scope="module")
def workplace(
    tmp_path_factory: pytest.TempPathFactory, small_settings: dict[str, list[str]]
) -> Iterator[tuple[Path, list[str]]]:
    """A folder with the files that the README speaks of, where its `evae` commands have run; those commands."""
    folder = tmp_path_factory.mktemp("readme")
    cells = simulate_perturb_seq(n_cells=900, n_genes=60, n_cell_types=2, n_perturbations=4, seed=2)
    own = ["control", *(p for p in cells.obs["perturbation"].cat.categories if p != "control")]
    cells.obs["perturbation"] = cells.obs["perturbation"].astype(str).map(dict(zip(own, NAMES, strict=True)))
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(str).map(LINES)
    cells.write_h5ad(folder / "screen.h5ad")
    (folder / "split.json").write_text(snippets("json")[0])
    stress_screen(folder / "stress.h5ad")
    challenge_bundle(cells, folder)
    ran = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setitem(sys.modules, "umap", None)  # it compiles itself for a minute
        for line in commands():
            words = [SMALLER.get(word, word) for word in shlex.split(line)]
            # a cross product of trainings, a run of another code: tests/study and tests/conversion run them
            if words[0] == "evae" and words[1] not in ("study", "convert"):
                with pytest.raises(SystemExit) as stop:
                    main([*words[1:], *(small_settings[words[2]] if words[1] == "train" else [])])
                assert stop.value.code == 0, line
                ran.append(words[1])
        yield folder, ran


def test_commands_of_the_main_path(workplace):
    folder, ran = workplace
    assert ran == [
        *("prepare", "train", "train", "predict", "evaluate", "predict", "embed", "vcc", "vcc", "evaluate", "embed"),
        "reversion",
        *("push", "push-dataset"),
    ]
    assert json.loads((folder / "data/screen/split.json").read_text()) == json.loads(snippets("json")[0])
    asked = ad.read_h5ad(folder / "stat1_jak2.h5ad").obs
    assert set(asked["perturbation"]) == {"STAT1", "JAK2"}
    assert set(asked["cell_type"]) == {"K562"}
    assert len(asked) == 40
    assert (folder / "predicted_held_out_evaluation" / "report.html").is_file()
    assert "X_evae" in ad.read_h5ad(folder / "embedded.h5ad").obsm
    assert (folder / "stress_reversion" / "report.html").is_file()
    assert (folder / "entry.vcc").is_file()


def test_python_snippets_run_in_order(workplace, tiny_checkpoint, small_settings, monkeypatch):
    """On the tiny checkpoint in the place of the published one."""
    folder, _ = workplace
    monkeypatch.chdir(folder)
    published(tiny_checkpoint, folder / "published")
    namespace: dict = {"smaller": small_settings["tokenizer"]}
    blocks = snippets("python")
    assert len(blocks) == 5
    for block in blocks:
        block = block.replace(HUB_ID, "published").replace("500", "30").replace("1_000", "10")
        block = block.replace(", choices)", ", choices + smaller)")
        exec(compile(block, "README.md", "exec"), namespace)
    assert (folder / "runs/filtered/model.safetensors").is_file()
    assert set(ad.read_h5ad(folder / "predicted.h5ad").obs["perturbation"]) == {"STAT1"}
    assert "X_evae" in namespace["cells"].obsm
    assert namespace["counts"].shape == (8, 60)
    assert (folder / "report" / "report.html").is_file()


def test_every_file_that_a_command_names_exists():
    for line in commands():
        for word in shlex.split(line):
            if word.startswith("scripts/"):
                assert (ROOT / word).is_file(), line


def test_shell_scripts_are_said_to_exist_and_do():
    for script in ("scripts/demo.sh", "scripts/test.sh"):
        assert f"bash {script}" in README
        assert (ROOT / script).is_file()
