"""Every snippet of README and docs/ runs: the `evae` commands on a small screen, then the Python page by page."""

import json
import re
import shlex
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import anndata as ad
import pytest
import yaml
from typer.main import get_command

from evae.cli import app, main
from evae.data.simulation.dose_curves import simulate_dose_screen
from evae.data.simulation.perturb_seq import simulate_perturb_seq
from evae.data.simulation.screen import simulate_reversion_screen
from evae.reversion import PRESETS

ROOT = Path(__file__).resolve().parents[1]
NAMES = ["non-targeting", "STAT1", "JAK2", "IRF1", "CUL3"]
LINES = {"type_A": "K562", "type_B": "RPE1"}
SMALLER = {"hvg:2000": "hvg:50", "500": "20"}
# Trainings of many models, a run of other code and what needs ten held-out pairs (tests/study, tests/conversion and
# tests/inference run them), the demo's first, and the app, which serves until it is stopped (tests/app).
ELSEWHERE = {"study", "convert", "calibrate", "simulate", "app"}


def pages() -> list[Path]:
    """README, then the pages of the documentation in the order of its navigation."""

    def files(entry: object) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        for part in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
            yield from files(part)

    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    return [ROOT / "README.md", *(ROOT / "docs" / file for file in files(nav) if file.endswith(".md"))]


def snippets(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Every line of a shell that the pages show, once, in order."""
    blocks = [block for page in pages() for block in snippets(page, "bash")]
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return list(dict.fromkeys(line for line in lines if line))


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
    """A folder with the files that the pages speak of, where their `evae` commands have run; those commands."""
    folder = tmp_path_factory.mktemp("readme")
    cells = simulate_perturb_seq(n_cells=900, n_genes=60, n_cell_types=2, n_perturbations=4, seed=2)
    own = ["control", *(p for p in cells.obs["perturbation"].cat.categories if p != "control")]
    cells.obs["perturbation"] = cells.obs["perturbation"].astype(str).map(dict(zip(own, NAMES, strict=True)))
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(str).map(LINES)
    cells.write_h5ad(folder / "screen.h5ad")
    (folder / "split.json").write_text(snippets(ROOT / "docs/guide/prepare.md", "json")[0])
    stress_screen(folder / "stress.h5ad")
    simulate_dose_screen(n_cells=600, n_genes=60, n_drugs=2).write_h5ad(folder / "drugs.h5ad")
    challenge_bundle(cells, folder)
    ran = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setitem(sys.modules, "umap", None)  # it compiles itself for a minute
        for line in commands():
            words = [SMALLER.get(word, word) for word in shlex.split(line)]
            if "--hub" in words:  # run by tests/hub/test_tahoe.py, on the tests' own Hub
                continue
            if "--space" in words and find_spec("gradio") is None:  # whose version a Space needs to know
                continue
            if words[0] == "evae" and words[1] not in ELSEWHERE:
                with pytest.raises(SystemExit) as stop:
                    main([*words[1:], *(small_settings[words[2]] if words[1] == "train" else [])])
                assert stop.value.code == 0, line
                ran.append(words[1])
        yield folder, ran


def test_every_command_is_shown_and_runs(workplace):
    folder, ran = workplace
    assert set(ran) == set(get_command(app).commands) - ELSEWHERE
    assert json.loads((folder / "data/screen/split.json").read_text())["cell_type"] == ["RPE1"]
    named = json.loads(snippets(ROOT / "docs/guide/prepare.md", "json")[0])
    assert json.loads((folder / "data/two_knock_outs/split.json").read_text()) == named
    asked = ad.read_h5ad(folder / "stat1_jak2.h5ad").obs
    assert set(asked["perturbation"]) == {"STAT1", "JAK2"}
    assert set(asked["cell_type"]) == {"K562"}
    assert len(asked) == 40
    assert (folder / "predicted_held_out_evaluation" / "report.html").is_file()
    assert "X_evae" in ad.read_h5ad(folder / "embedded.h5ad").obsm
    assert (folder / "stress_reversion" / "report.html").is_file()
    assert (folder / "entry.vcc").is_file()
    assert set(ad.read_h5ad(folder / "doses.h5ad").obs["dose"]) == {0.03, 0.3, 3.0, 30.0}


@pytest.mark.parametrize("page", [page for page in pages() if snippets(page, "python")], ids=lambda page: page.stem)
def test_python_snippets_of_a_page_run(page, workplace, small_settings, monkeypatch):
    folder, _ = workplace
    monkeypatch.chdir(folder)
    namespace: dict = {"smaller": small_settings["tokenizer"]}
    for block in snippets(page, "python"):
        block = block.replace("500", "30").replace("1_000", "10")
        block = block.replace(", choices)", ", choices + smaller)")
        exec(compile(block, page.name, "exec"), namespace)
    made = {
        "README": lambda: set(ad.read_h5ad("predicted.h5ad").obs["cell_type"]) == {"rep_3"},
        "predict": lambda: set(ad.read_h5ad("predicted.h5ad").obs["perturbation"]) == {"STAT1"},
        "train": Path("runs/filtered/model.safetensors").is_file,
        "evaluate": Path("report/report.html").is_file,
        "embed": lambda: "X_evae" in namespace["cells"].obsm,
        "hub": lambda: namespace["counts"].shape == (8, 50),
    }
    assert made.get(page.stem, lambda: True)()


def test_every_file_that_a_command_names_exists():
    for line in commands():
        for word in shlex.split(line):
            if word.startswith("scripts/"):
                assert (ROOT / word).is_file(), line


def test_shell_scripts_are_said_to_exist_and_do():
    for script in ("scripts/demo.sh", "scripts/test.sh"):
        assert f"bash {script}" in (ROOT / "README.md").read_text()
        assert (ROOT / script).is_file()
