#!/usr/bin/env bash
# What a tool of Gradio's MCP server returns reaches agents as Python writes it, not as JSON.
#
# Seen 2026-11-28 with gradio 6.31.0 and mcp 1.30.0, Python 3.11, for functions given to gr.api and served with
# launch(mcp_server=True):
# * a dict or list comes as one text such as {'gene': 'STAT1', 'known': True, 'fdr': None}, with structuredContent None;
#   json.loads fails on it. The HTTP interface gives JSON.
# * the lines of a docstring's "Returns:" are joined by commas, in the middle of a sentence too.
# * a default that is false (0, "", False) is left out of the input schema; 300 stands in it.
# * launch(quiet=True) still prints two lines on the MCP server.
# What helps: return json.dumps(...); say in the description what comes back. Ends with 1 once one of these changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "gradio[mcp]==6.31.0" gradio_client==2.7.2 \
    mcp==1.30.0 pydantic==2.12.5 fastapi==0.165.0 starlette==1.10.0 uvicorn==0.54.0
cd "$folder"
GRADIO_ANALYTICS_ENABLED=False GRADIO_TEMP_DIR="$folder/files" NO_PROXY=127.0.0.1,localhost venv/bin/python - <<'PYTHON'
import asyncio
import contextlib
import io
import json
import sys

import gradio as gr
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client


def effects(gene: str, n: int = 300, seed: int = 0) -> dict:
    """Say how a gene changes.

    Returns:
        The gene, whether it is known, and the
        false discovery rate.
    """
    return {"gene": gene, "known": True, "fdr": None}


with gr.Blocks() as page:
    gr.api(effects)
printed = io.StringIO()
with contextlib.redirect_stdout(printed):
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, mcp_server=True)


async def talk():
    url = f"{address}gradio_api/mcp/"
    async with streamablehttp_client(url) as (read, write, _), ClientSession(read, write) as session:
        await session.initialize()
        tool = (await session.list_tools()).tools[0]
        return tool, await session.call_tool(tool.name, {"gene": "STAT1"})


tool, answer = asyncio.run(talk())
page.close(verbose=False)
text, defaults = answer.content[0].text, {k: v.get("default") for k, v in tool.inputSchema["properties"].items()}
try:
    json.loads(text)
    is_json = True
except ValueError:
    is_json = False
print("gradio", gr.__version__, text, answer.structuredContent, defaults, repr(tool.description), repr(printed.getvalue()))
same = not is_json and text == "{'gene': 'STAT1', 'known': True, 'fdr': None}" and answer.structuredContent is None
same &= defaults["n"] == 300 and defaults["seed"] is None and "and the, false" in tool.description
sys.exit(not (same and "MCP" in printed.getvalue()))
PYTHON
