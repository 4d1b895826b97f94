"""The app as it is served: a headless browser, tools for agents, and requests that no page would send."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import anndata as ad
import pandas as pd
import pytest

import evae
from evae.app.server import free_port
from evae.inference.example import CONTROLS, FOLDER

pytest.importorskip("gradio", reason="Gradio is in the extra app")
pytest.importorskip("mcp", reason="Gradio's server of tools is in the extra app")
pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
# UMAP compiles itself for half a minute, so the server is without it.
START = "import sys; sys.modules['umap'] = None; from evae.cli import main; main(sys.argv[1:])"


class Served(NamedTuple):
    """A server that runs: its address, and the folder of its uploads and downloads."""

    address: str
    folder: Path
    said: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`evae app`, with uploads of at most 1 MB."""
    temporary = tmp_path_factory.mktemp("served")
    port = free_port("127.0.0.1", 0)
    words = ["app", "--port", str(port), "--max-upload", "1"]
    environment = os.environ | {"TMPDIR": str(temporary), "http_proxy": "http://127.0.0.1:9", "MPLBACKEND": "Agg"}
    process = subprocess.Popen(
        [sys.executable, "-c", START, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=environment, cwd=temporary,
    )  # fmt: skip
    assert process.stdout is not None
    said = process.stdout.readline()
    try:
        assert f"http://127.0.0.1:{port}/" in said, said + process.stdout.read()
        yield Served(f"http://127.0.0.1:{port}", next(temporary.glob("evae-app-*")), said)
    finally:
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)  # as programs do that stop a group of processes
        rest = process.communicate(timeout=30)[0]
    assert "KeyboardInterrupt" not in rest  # what Gradio says of requests that no page sends may stand there
    assert list(temporary.glob("evae-app-*")) == []  # uploads and downloads go with the server


def get(url: str, data: bytes | None = None, kind: str = "application/json") -> tuple[int, bytes]:
    """Status and body of a request, without the proxy of the environment."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, data, {"Content-Type": kind}), timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def send(served: Served, name: str, content: bytes) -> tuple[int, bytes]:
    """Upload a file under a name."""
    head = f'--xyz\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    body = head.encode() + content + b"\r\n--xyz--\r\n"
    return get(f"{served.address}/gradio_api/upload", body, "multipart/form-data; boundary=xyz")


def event(served: Served, kind: str, data: list[Any]) -> str:
    """What the server answers to the first event of a kind ("upload", "click"), as its page gets it."""
    config = json.loads(get(f"{served.address}/config")[1])
    number = next(d["id"] for d in config["dependencies"] if any(t[1] == kind for t in d["targets"]))
    asked = {"data": data, "fn_index": number, "session_hash": "abc"}
    status, _ = get(f"{served.address}/gradio_api/queue/join", json.dumps(asked).encode())
    assert status == 200
    return get(f"{served.address}/gradio_api/queue/data?session_hash=abc")[1].decode()


def test_one_line_says_where(served):
    assert re.fullmatch(
        r"evae app: http://[\d.:]+/ \(tools for agents: http://\S+/mcp/\); Ctrl\+C ends it\n", served.said
    )


def test_browsers_are_told_to_take_nothing_from_elsewhere(served):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(served.address, timeout=60) as answer:
        policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy


def test_no_file_of_the_machine_is_served(served, tmp_path):
    own = tmp_path / "own.txt"
    own.write_text("mine")
    outside = [str(own), str(FOLDER / CONTROLS), "/etc/hostname", "..%2F..%2Fetc%2Fhostname", f"{served.folder}/../own"]
    for path in outside:
        for route in ("file=", "file/", "stream/", "static/"):
            status, body = get(f"{served.address}/gradio_api/{route}{path}")
            assert status in (400, 403, 404, 405, 422), (route, path)
            assert b"mine" not in body


def test_the_name_of_an_upload_leads_nowhere(served):
    """Names of relative and absolute paths end in the folder of uploads."""
    for name in ("../../out.h5ad", "/tmp/evae_out.h5ad", "..", "a/../../b.h5ad", "%2e%2e%2fout.h5ad"):
        status, body = send(served, name, b"content")
        assert status in (200, 400)
        for path in json.loads(body) if status == 200 else []:
            assert Path(path).resolve().is_relative_to(served.folder.resolve())
    assert not Path("/tmp/evae_out.h5ad").exists()
    assert {p.name for p in served.folder.parent.iterdir()} == {served.folder.name}


def test_uploads_are_limited_in_size(served):
    status, body = send(served, "large.h5ad", b"0" * 1_200_000)
    assert status == 413
    assert b"1000000 bytes" in body
    assert not list(served.folder.rglob("large*"))


def test_a_path_in_place_of_an_upload_is_refused_and_the_file_left_alone(served, tmp_path):
    """As a client may send that is not the page: a path of the machine, also one that leads out of the folder."""
    own = Path(shutil.copy(FOLDER / CONTROLS, tmp_path / "own.h5ad"))
    inside = f"{served.folder}/../{os.path.relpath(own, served.folder.parent)}"
    for path in (str(own), inside, "http://127.0.0.1:9/own.h5ad"):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "own.h5ad"}
        said = event(served, "upload", [file, "example", "", "", ""])
        assert "process_completed" in said
        assert "control cells" not in said
        assert own.is_file()


def test_values_that_the_page_does_not_offer_are_refused(served, tiny_checkpoint):
    """A model by its path, a cell type that is none, numbers out of range: nothing is predicted."""
    for model, kind, n_cells in ((str(tiny_checkpoint), "rep_3", 20), ("example", "x", 20), ("example", "rep_3", 9e9)):
        said = event(served, "click", [model, "STAT1", kind, n_cells, 0, "Those of the model", None])
        assert "process_completed" in said
        assert "predicted cells" not in said


def test_agents_find_tools_that_answer_in_json(served):
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    async def talk() -> tuple[list[Any], list[Any]]:
        url = f"{served.address}/gradio_api/mcp/"
        async with streamablehttp_client(url) as (read, write, _), ClientSession(read, write) as session:
            await session.initialize()
            asked = [
                ("list_models", {}),
                ("predict_genes", {"perturbation": "STAT1", "n_cells": 60, "n_genes": 4}),
                ("predict_genes", {"perturbation": "STAT"}),
                ("predict_genes", {"perturbation": "STAT1", "model": "/etc"}),
                ("predict_cells", {"perturbation": "JAK2", "n_cells": 20, "seed": 5}),
            ]
            return (await session.list_tools()).tools, [await session.call_tool(*call) for call in asked]

    tools, (models, genes, unknown, path, cells) = asyncio.run(talk())
    assert [tool.name for tool in tools] == ["list_models", "predict_genes", "predict_cells"]
    assert all(tool.description for tool in tools)
    assert tools[1].inputSchema["required"] == ["perturbation"]
    assert tools[1].inputSchema["properties"]["n_cells"]["type"] == "integer"
    (model,) = json.loads(models.content[0].text)
    assert (model["model"], len(model["perturbations"]), model["has_controls"]) == ("example", 25, True)
    found = json.loads(genes.content[0].text)
    pipe, controls = evae.pipeline("example", "cpu"), evae.example_controls()
    table = pipe.effects(pipe.predict(controls, "STAT1", n_cells=60, progress=False), controls, redraws=0)
    assert [gene["gene"] for gene in found["genes"]] == list(table["gene"][:4])
    assert found["genes"][0]["fdr"] == pytest.approx(table["fdr"][0])
    assert unknown.isError
    assert "Did you mean 'STAT3'" in unknown.content[0].text
    assert path.isError
    assert "no model '/etc'" in path.content[0].text
    status, content = get(re.search(r"http\S+h5ad", cells.content[0].text)[0])
    assert status == 200
    (served.folder / "fetched").write_bytes(content)
    expected = pipe.predict(controls, "JAK2", n_cells=20, seed=5, progress=False)
    assert (ad.read_h5ad(served.folder / "fetched").X != expected.X).nnz == 0


@pytest.fixture
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here (apt install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is in the extra dev")
    with (
        playwright.sync_playwright() as driver,
        contextlib.closing(
            driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--no-proxy-server"])
        ) as found,
    ):
        yield found


def choose(page: Any, field: str, name: str) -> None:
    """Choose in a list that can be searched, as people do."""
    page.locator(f"#{field} input").click()
    page.locator(f"#{field} input").fill("")
    page.locator(f"#{field} input").press_sequentially(name)
    page.get_by_role("option", name=name, exact=True).click()
    assert page.locator(f"#{field} input").input_value() == name


@pytest.mark.parametrize(("width", "height"), [(1366, 900), (390, 844)], ids=["laptop", "phone"])
def test_the_page_predicts_draws_and_downloads(served, browser, tmp_path, width, height):
    page = browser.new_page(viewport={"width": width, "height": height})
    asked, faults = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(served.address)
    assert page.locator("#results").count() == 0 or not page.locator("#results").is_visible()
    assert page.locator("#perturbation input").input_value() == "STAT1"  # one click gives a first prediction
    choose(page, "perturbation", "JAK2")
    page.locator("#predict").click()
    for picture in ("cells", "volcano", "violin"):
        image = page.locator(f"#{picture} img")
        image.wait_for()
        assert image.get_attribute("alt")
        assert image.evaluate("image => image.complete && image.naturalWidth") > 400
    assert "300 predicted cells" in page.locator("#said").inner_text()
    pipe, controls = evae.pipeline("example", "cpu"), evae.example_controls()
    expected = pipe.predict(controls, "JAK2", n_cells=300, progress=False)
    table = pipe.effects(expected, controls)
    shown = [row.split()[0] for row in page.locator("#genes tbody tr").all_inner_texts()]
    assert shown == list(table["gene"][: len(shown)])
    assert len(shown) > 10
    files = {}
    for kind in ("h5ad", "csv"):
        with page.expect_download() as download:
            page.locator(f"#{kind}").click()
        files[kind] = tmp_path / download.value.suggested_filename
        download.value.save_as(files[kind])
    assert (ad.read_h5ad(files["h5ad"]).X != expected.X).nnz == 0
    pd.testing.assert_frame_equal(pd.read_csv(files["csv"], keep_default_na=False), table, check_dtype=False)
    before = page.locator("#violin img").get_attribute("src")
    choose(page, "gene", "JAK2")
    page.locator("#violin figcaption").get_by_text("JAK2").wait_for()
    assert page.locator("#violin img").get_attribute("src") != before
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert [url for url in asked if not url.startswith((served.address, "data:", "blob:"))] == []
    assert faults == []


def test_the_page_takes_own_controls_and_survives_a_wrong_file(served, browser, tmp_path):
    wrong, own = tmp_path / "wrong.h5ad", tmp_path / "own.h5ad"
    wrong.write_text("no cells")
    cells = evae.example_controls()[:50].copy()
    cells.obs = pd.DataFrame({"cell_type": "<b>mine</b>"}, index=cells.obs_names)
    cells.write_h5ad(own)
    page = browser.new_page()
    page.goto(served.address)
    page.locator("#source").get_by_text("My own").click()
    page.locator("#file input[type=file]").set_input_files(wrong)
    page.locator("#upload_said [role=alert]").get_by_text(
        "wrong.h5ad is no h5ad file; write your cells with"
    ).wait_for()
    choose(page, "perturbation", "STAT1")
    page.locator("#predict").click()
    page.locator("#said .trouble").get_by_text("no control cells are uploaded").wait_for()
    page.locator("#file input[type=file]").set_input_files(own)
    page.locator("#upload_said [role=status]").get_by_text("50 control cells").wait_for()
    page.wait_for_function("document.querySelector('#cell_type input').value.includes('mine')")
    page.locator("#predict").click()
    page.locator("#volcano img").wait_for()
    said = page.locator("#said").inner_text()
    assert "STAT1 in <b>mine</b>" in said  # as text
    assert "300 predicted cells beside 50 control cells" in said
    assert not [path for path in served.folder.rglob("*.h5ad") if path.name in ("own.h5ad", "wrong.h5ad")]
