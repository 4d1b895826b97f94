"""Reports, figures and the model card's numbers."""

import base64
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest
from huggingface_hub.repocard_data import model_index_to_eval_results

from evae.common.numbers import format_number
from evae.evaluation import evaluate, model_index
from evae.evaluation.report import benchmark, eval_entries
from evae.evaluation.report.brief import brief
from evae.evaluation.report.plots import PLOTS
from evae.models.contract_evae import EvaeError

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def folder(screen, real, perfect, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    result = evaluate(perfect, real, screen, suite="robust", seeds=(0, 1), progress=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "umap", None)  # as if it were not installed: it compiles for half a minute
        assert result.report(folder) == folder / "report.html"
    return folder


def test_all_figures_are_written(folder):
    names = {path.name for path in (folder / "plots").iterdir()}
    expected = {"distances_robust.png", "perturbation_metrics.png", "diversity.png", "per_perturbation.png"}
    expected |= {"radar.png", "cells_pca.png", "top_genes.png"}
    assert expected <= {plot.file for plot in PLOTS}
    assert names == expected | {"best_1.png", "worst_1.png"}
    for path in (folder / "plots").iterdir():
        assert path.read_bytes().startswith(PNG)


def test_what_is_defined_nowhere_has_no_panel_and_no_line(screen, real, perfect, tmp_path):
    one = real[real.obs.perturbation == "G1"][:1].copy()  # no halves, and none to discriminate from
    result = evaluate(perfect, one, screen, seeds=(0,), progress=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "umap", None)
        page = result.report(tmp_path).read_text()
    assert {path.name for path in (tmp_path / "plots").iterdir()} >= {"perturbation_metrics.png", "cells_pca.png"}
    assert not (tmp_path / "plots" / "distances_robust.png").exists()
    assert [row[0] for row in brief(result.summary())] == ["Pearson Δ ↑"]
    assert "In brief" in page


def test_the_brief_names_the_best_baseline(folder):
    summary = pd.DataFrame(json.loads((folder / "result.json").read_text())["summary"])
    rows = {row[0]: row for row in brief(summary)}
    values = summary.query("group == 'robust' and level == 'pooled' and metric == 'fd'").set_index("system")["value"]
    best = values.drop(["model", "real split half", "mean-collapsed model"]).idxmin()
    assert f"({best})" in rows["FD ↓"][2]
    assert rows["FD ↓"][1].startswith(format_number(values["model"]))
    auc = summary.query("group == 'diversity' and metric == 'classifier_auc'").set_index("system")["value"]
    nearest = (auc.drop(["model", "real split half", "mean-collapsed model"]) - 0.5).abs().idxmin()
    assert f"({nearest})" in rows["classifier AUC →0.5"][2]


UMAP_OF_FEW_CELLS = """
import sys
from evae.evaluation.cells.comparison import compare
from evae.evaluation.report.figures_cells import plot_umap
figure = plot_umap(compare(*sys.argv[1:]))
print([len(collection.get_offsets()) for collection in figure.axes[0].collections])
"""


def test_umap_is_drawn_where_it_is_installed(screen, real, perfect, tmp_path):
    """With umap-learn itself, uncompiled in a process of its own: for few cells that takes a twentieth of the time."""
    if importlib.util.find_spec("umap") is None:
        pytest.skip("umap-learn is in the extra eval")
    for name, cells in (("predicted", perfect[::10]), ("real", real[::10]), ("train", screen)):
        cells.copy().write_h5ad(tmp_path / f"{name}.h5ad")
    files = [str(tmp_path / f"{name}.h5ad") for name in ("predicted", "real", "train")]
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", UMAP_OF_FEW_CELLS, *files], env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[24, 80]", done.stderr


def test_the_html_needs_no_other_file(folder):
    page = (folder / "report.html").read_text()
    images = re.findall(r'src="([^"]+)"', page)
    assert len(images) == len(list((folder / "plots").iterdir()))
    for image in images:
        assert base64.b64decode(image.removeprefix("data:image/png;base64,")).startswith(PNG)
    assert "http" not in re.sub(r'src="[^"]+"', "", page)


def test_the_best_and_the_worst_predicted_pair_have_a_page(folder):
    records = pd.read_csv(folder / "records.csv").query("system == 'model' and group == 'perturbation'")
    order = records.query("metric == 'pearson_delta'").groupby("perturbation")["value"].mean().sort_values()
    page = (folder / "report.html").read_text()
    for anchor, name, rank in (("best-1", order.index[-1], 1), ("worst-1", order.index[0], 3)):
        value = format_number(order[name])
        assert f'<section id="{anchor}">\n<h3>{name} in B: Pearson Δ {value}, rank {rank} of 3</h3>' in page
        assert f'<a href="#{anchor}">{name}</a>' in page  # from the table of all pairs
        assert f"### {name} in B: Pearson Δ {value}, rank {rank} of 3" in (folder / "report.md").read_text()
    table = page[page.index("<h2>Pair by pair</h2>") : page.index("<h2>Figures</h2>")]
    assert re.findall(r"<tr><td>(?:<a [^>]*>)?(G\d)", table) == list(order.index[::-1])


CLICK = """
<script>
const table = [...document.querySelectorAll("h2")].find(h => h.textContent.startsWith("Protocol robust: PCA"))
  .nextElementSibling.querySelector("table");
const column = n => [...table.rows].slice(1).map(row => row.cells[n].textContent).join("|");
const button = table.rows[0].cells[1].querySelector("button");
button.click(); const up = column(1); const sorted = table.rows[0].cells[1].getAttribute("aria-sort");
button.click();
document.body.innerHTML = `<pre>${JSON.stringify({up, sorted, down: column(1), names: column(0)})}</pre>`;
</script>
"""


def test_tables_are_sorted_by_a_click(folder, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here")
    (tmp_path / "page.html").write_text((folder / "report.html").read_text().replace("</body>", CLICK + "</body>"))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run([*command, "--dump-dom", f"file://{tmp_path}/page.html"], capture_output=True, text=True)
    found = json.loads(re.search(r"<pre>(.*)</pre>", done.stdout, re.DOTALL)[1])
    values = [[float(text.split(" ±")[0]) for text in found[way].split("|")] for way in ("up", "down")]
    assert found["sorted"] == "ascending"  # the first click puts the better system first
    assert values[0] == sorted(values[0]) == values[1][::-1]
    assert found["names"].split("|")[-1] == "real split half"  # which has the lowest distance


@pytest.mark.parametrize("name", ["report.md", "report.html"])
def test_the_numbers_stand_in_the_report(folder, name):
    stored = json.loads((folder / "result.json").read_text())
    text = (folder / name).read_text()
    row = next(r for r in stored["summary"] if (r["system"], r["metric"], r["level"]) == ("model", "fd", "pooled"))
    assert f"{format_number(row['value'])} ±" in text
    for system in ("control copy", "additive shift", "real split half"):
        assert system in text
    assert stored["sha256"]["real"] in text
    assert "seeds" in text


def test_markdown_tables_are_whole(folder):
    lines = [line for line in (folder / "report.md").read_text().splitlines() if line.startswith("|")]
    blocks = re.split(r"\n\n", (folder / "report.md").read_text())
    assert lines
    for block in (b.splitlines() for b in blocks if b.startswith("|")):
        assert len({line.count("|") for line in block}) == 1


def test_model_index_is_what_the_hub_reads(folder):
    found = model_index(folder / "result.json", "toy", "Toy screen", "toy-screen")
    name, results = model_index_to_eval_results(found)
    assert name == "toy"
    stored = json.loads((folder / "result.json").read_text())
    fd = next(r for r in results if r.metric_type == "fd")
    row = next(r for r in stored["summary"] if (r["system"], r["metric"], r["level"]) == ("model", "fd", "pooled"))
    assert fd.metric_value == row["value"]
    assert fd.dataset_config == "robust"
    assert model_index(stored, "toy", "Toy screen", "toy-screen") == found


def test_eval_entries_are_what_the_hub_reads_and_name_tasks_of_the_benchmark(folder):
    hub = pytest.importorskip("huggingface_hub._eval_results", reason="huggingface_hub before 1.4 has no such entries")
    entries = eval_entries(folder / "result.json", "me/screen")
    parsed = hub.parse_eval_result_entries(entries)
    assert hub.eval_result_entries_to_yaml(parsed) == entries
    (_, results), tasks = (
        model_index_to_eval_results(model_index(folder / "result.json", "toy", "Toy screen", "me/screen")),
        {task["id"] for task in benchmark("screen")["tasks"]},
    )
    assert [entry.value for entry in parsed] == [found.metric_value for found in results]
    assert {entry.task_id for entry in parsed} <= tasks
    assert len({entry.task_id for entry in parsed}) == len(parsed)


def test_model_index_of_something_else_raises(tmp_path):
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(EvaeError, match="no summary"):
        model_index(tmp_path / "x.json", "m", "d", "i")
    with pytest.raises(EvaeError, match="is no result of an evaluation"):
        model_index(tmp_path / "none.json", "m", "d", "i")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1.8912, "1.89"),
        (0.00664, "0.00664"),
        (157.3, "157"),
        (-0.000012, "-0.00001"),
        (3e-7, "3e-07"),
        (0.09996, "0.100"),
        (float("nan"), "–"),
    ],
)
def test_format_number(value, text):
    assert format_number(value) == text
