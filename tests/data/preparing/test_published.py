"""Published sets out of small files of their schema, from a server with ranges that cuts connections."""

import errno
import importlib.util
import json
import os
import re
import threading
import urllib.error
import urllib.request
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from evae.common.progress import progress_bar
from evae.data.preparing import published
from evae.data.preparing.published import RemoteFile, fetch
from evae.data.streaming.loader import DatasetInfo
from evae.data.streaming.split_anndata import read_split
from evae.models.contract_evae import EvaeError

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"


def _script(name: str):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def server(monkeypatch):
    """`files` (path -> bytes) under `address`; every answer ends after `cut` bytes; `ranges` are what was asked."""
    monkeypatch.setattr(published, "PAUSE", 0.0)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            content = web.files.get(self.path)
            if content is None:
                return self.send_error(404)
            start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, "0"])[1])
            web.ranges.append(start)
            if start >= len(content) and start:
                return self.send_error(416)
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start : start + web.cut if web.cut else None])
            return None

        def log_message(self, *_):
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.files, web.cut, web.ranges, web.daemon_threads = {}, 0, [], True
    web.address = f"http://127.0.0.1:{web.server_port}"
    threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield web
    web.shutdown()
    web.server_close()


@pytest.fixture
def bar():
    with progress_bar(False) as bar:
        yield bar


def test_cuts_cost_nothing(server, tmp_path, bar):
    content = np.random.default_rng(0).bytes(10_000)
    server.files["/a"], server.cut = content, 3_000
    file = RemoteFile("a", f"{server.address}/a")
    assert fetch(file, tmp_path, bar).read_bytes() == content
    assert server.ranges == [0, 3_000, 6_000, 9_000]
    fetch(file, tmp_path, bar)
    assert len(server.ranges) == 4  # it is there
    (tmp_path / "b.part").write_bytes(content[:7_777])  # what a killed run left
    server.files["/b"], server.cut = content, 0
    assert fetch(RemoteFile("b", f"{server.address}/b"), tmp_path, bar).read_bytes() == content
    assert server.ranges[4:] == [7_777]


def test_what_is_not_the_published_file_is_refused(server, tmp_path, bar):
    server.files["/a"] = b"cells"
    file = RemoteFile("a", f"{server.address}/a", md5="0" * 32)
    with pytest.raises(EvaeError, match=r"has the md5 .* not 0000"):
        fetch(file, tmp_path, bar)
    assert not list(tmp_path.iterdir())
    with pytest.raises(EvaeError, match="answers 404"):
        fetch(replace(file, url=f"{server.address}/none"), tmp_path, bar)
    fetch(replace(file, md5=None), tmp_path, bar)
    learned = json.loads((tmp_path / "a.json").read_text())
    assert learned["size"] == 5
    (tmp_path / "a").unlink()
    server.files["/a"] = b"other"  # as long, but changed since
    with pytest.raises(EvaeError, match=f"not {learned['md5']}"):
        fetch(replace(file, md5=None), tmp_path, bar)
    server.shutdown()
    server.server_close()
    with pytest.raises(EvaeError, match="cannot be reached"):
        fetch(replace(file, name="c"), tmp_path, bar)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_full_disk_is_not_taken_for_the_network(server, tmp_path, monkeypatch, bar, code):
    server.files["/a"] = b"cells"
    file = RemoteFile("a", f"{server.address}/a")

    def full(self, *args):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", full)
        with pytest.raises(EvaeError, match=r"could not write .*a\.part .*free space there"):
            fetch(file, tmp_path, bar)

    def walled(*args, **keywords):
        raise urllib.error.URLError(PermissionError(code, os.strerror(code)))

    with monkeypatch.context() as patched:
        patched.setattr(urllib.request, "urlopen", walled)
        with pytest.raises(EvaeError, match="cannot be reached"):
            fetch(file, tmp_path, bar)
    assert fetch(file, tmp_path, bar).read_bytes() == b"cells"


@pytest.mark.parametrize("name", ["replogle", "parse1m", "telohaec"])
def test_help_tells_what_is_relied_on(name, capsys):
    script = _script(f"prepare_{name}")
    with pytest.raises(SystemExit) as ended:
        script.main(["--help"]) if name == "telohaec" else published.published_main(
            script.FILES, script.__doc__, argv=["--help"], **script.OPTIONS
        )
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "Schema relied on" in said
    assert f"    python scripts/prepare_{name}.py" in said  # laid out as written


def _serve(server, name: str, counts: np.ndarray, obs: pd.DataFrame, var: pd.DataFrame, folder: Path) -> str:
    cells = ad.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs, var=var)
    cells.write_h5ad(folder / name)
    server.files[f"/{name}"] = (folder / name).read_bytes()
    return f"{server.address}/{name}"


def test_replogle(server, tmp_path, real_data):
    """Four files, each with other genes in another order and one symbol twice; the published panel and split."""
    script, rng = _script("prepare_replogle"), np.random.default_rng(0)
    test = json.loads((real_data / "splits" / "scldm_replogle_test.json").read_text())
    train = json.loads((real_data / "splits" / "scldm_replogle_train.json").read_text())
    panel, held = test["genes"], test["labels"]["gene"][:3]
    split = {"labels": {"cell_line": ["hepg2"], "gene": held}, "genes": panel}
    (tmp_path / "split.json").write_text(json.dumps(split))
    targets = ["non-targeting", *held, *[g for g in train["labels"]["gene"] if g not in held][:3]]
    ids = {g: f"ENSG{i:011d}" for i, g in enumerate(panel)}
    files, counted = [], {}
    for n, file in enumerate(script.FILES):
        genes = [str(g) for g in rng.permutation(panel)[: 1990 + n]]
        var = pd.DataFrame({"gene_name": [*genes, genes[0]]}, index=[*(ids[g] for g in genes), f"ENSG9999999999{n}"])
        var.index.name = "gene_id"
        counts = rng.poisson(0.3, (80, len(var)))
        obs = pd.DataFrame(
            {"gene": pd.Categorical(rng.choice(targets, 80)), "gem_group": 1, "sgID_AB": "x"},
            index=[f"{file.cell_type}-{i}" for i in range(80)],
        )
        url = _serve(server, file.name, counts, obs, var, tmp_path)
        files.append(RemoteFile(file.name, url, cell_type=file.cell_type))
        counted[file.cell_type] = pd.DataFrame(counts[:, :-1], index=obs.index, columns=genes), obs["gene"]
    server.cut = 200_000
    out = tmp_path / "out"
    places = ["--out", str(out), "--downloads", str(tmp_path / "downloads"), "--split", str(tmp_path / "split.json")]
    twice = sorted({frame.columns[0] for frame, _ in counted.values()}, key=panel.index)
    with pytest.raises(SystemExit, match=rf"genes of .*{script.FILES[0].name}: .*Ensembl ids"):
        published.published_main(files, "", argv=[*places, "--genes", str(tmp_path / "split.json")], **script.OPTIONS)
    (tmp_path / "panel.json").write_text(json.dumps([ids[g] if g in twice else g for g in panel]))
    published.published_main(files, "", argv=[*places, "--genes", str(tmp_path / "panel.json")], **script.OPTIONS)
    info = DatasetInfo.load(out)
    assert info.cell_types == ["hepg2", "jurkat", "k562", "rpe1"]
    assert info.perturbations[0] == "non-targeting"
    assert set(info.held_out_pairs()) == {("hepg2", g) for g in held}
    found = [g for g in panel if all(g in frame.columns for frame, _ in counted.values())]
    assert info.genes == [ids[g] if g in twice else g for g in found]
    assert info.ensembl_ids == [ids[g] for g in found]
    assert [s["genes_found"]["absent"] for s in info.statistics["sources"]] == [10, 9, 8, 7]
    for name in ("train", "test"):
        for kind, cells in read_split(out, name).to_df().groupby(lambda cell: cell.split("-")[0]):
            np.testing.assert_array_equal(cells, counted[kind][0].loc[cells.index, found])
    cells = read_split(out, "train").obs
    for kind, (_, gene) in counted.items():
        own = cells[cells["cell_type"] == kind]
        assert list(own["perturbation"]) == list(gene[own.index])


def test_parse_takes_one_donor(server, tmp_path):
    script, rng = _script("prepare_parse1m"), np.random.default_rng(0)
    obs = pd.DataFrame(
        {
            "donor": rng.choice(["Donor1", "Donor2"], 300),
            "cytokine": rng.choice(["PBS", "IL-2", "TNF"], 300),
            "cell_type": rng.choice(["CD4 Naive", "NK"], 300),
        },
        index=[f"c{i}" for i in range(300)],
    )
    obs.loc[obs["donor"] == "Donor2", "cytokine"] = "IL-99"
    counts = rng.poisson(1.0, (300, 40))
    url = _serve(server, "p.h5ad", counts, obs, pd.DataFrame(index=[f"G{g}" for g in range(40)]), tmp_path)
    places = ["--out", str(tmp_path / "out"), "--downloads", str(tmp_path), "--genes", "hvg:30"]
    published.published_main([RemoteFile("p.h5ad", url)], "", argv=places, **script.OPTIONS)
    info = DatasetInfo.load(tmp_path / "out")
    assert info.perturbations == ["PBS", "IL-2", "TNF"]
    assert sum(info.n_cells.values()) == (obs["donor"] == "Donor1").sum()
    assert info.statistics["dropped_cells"] == 0
    assert set(obs.loc[read_split(tmp_path / "out", "train").obs_names, "donor"]) == {"Donor1"}


def test_telohaec(server, tmp_path):
    script, rng = _script("prepare_telohaec"), np.random.default_rng(0)
    obs = pd.DataFrame(
        {
            "condition": rng.choice(["Treated", "Untreated"], 100),
            "gene_target": rng.choice(["SAFE_TARGET", "NO-TARGET", "RELA"], 100),
        },
        index=[f"c{i}" for i in range(100)],
    )
    var = pd.DataFrame(index=[f"G{g}" for g in range(20)])
    url = _serve(server, "t.h5ad", rng.poisson(1.0, (100, 20)), obs, var, tmp_path)
    with pytest.raises(SystemExit, match="give the address"):
        script.main(["--out", "x"])
    script.main(["--url", url, "--out", str(tmp_path / "out"), "--downloads", str(tmp_path / "downloads")])
    info = DatasetInfo.load(tmp_path / "out")
    assert info.perturbations == ["SAFE_TARGET", "NO-TARGET", "RELA"]
    assert info.cell_types == ["Treated", "Untreated"]
