#!/usr/bin/env bash
# An upload to Gradio that a client breaks off stays on the server's disk, whatever delete_cache says.
#
# Seen 2026-11-28 with gradio 6.31.0, Python 3.11: /gradio_api/upload writes to a temporary file in GRADIO_TEMP_DIR and
# removes it where the request is malformed or too large, but not where the connection ends. delete_cache=(1, 1) removes
# finished uploads and never that one, of which no list knows. A service for strangers so fills its disk.
# What helps: remove what is old in that folder yourself. Ends with 1 once this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check gradio==6.31.0 gradio_client==2.7.2 \
    pydantic==2.12.5 fastapi==0.165.0 starlette==1.10.0 uvicorn==0.54.0
cd "$folder"
GRADIO_ANALYTICS_ENABLED=False GRADIO_TEMP_DIR="$folder/files" NO_PROXY=127.0.0.1,localhost venv/bin/python - <<'PYTHON'
import socket
import sys
import time
from pathlib import Path

import gradio as gr

with gr.Blocks(delete_cache=(1, 1)) as page:
    file = gr.File()
    file.upload(lambda path: None, file)
page.launch(prevent_thread_lock=True, quiet=True)
head = 'POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=xyz\r\n'
part = '--xyz\r\nContent-Disposition: form-data; name="files"; filename="{}"\r\n\r\n'


def send(name: str, content: bytes, announced: int) -> None:
    body = part.format(name).encode() + content
    with socket.create_connection(("127.0.0.1", page.server_port)) as connection:
        connection.sendall(f"{head}Content-Length: {len(body) + announced}\r\n\r\n".encode() + body)
        time.sleep(1)


whole = b"0" * 100_000 + b"\r\n--xyz--\r\n"
send("whole.h5ad", whole, 0)
send("broken.h5ad", b"0" * 100_000, 100_000)
time.sleep(5)
left = {path.name: path.stat().st_size for path in Path("files").rglob("*") if path.is_file()}
page.close(verbose=False)
print("gradio", gr.__version__, "left after 5 seconds:", left)
sys.exit(not any(name.startswith("tmp") and size > 50_000 for name, size in left.items()))
PYTHON
