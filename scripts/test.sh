#!/usr/bin/env bash
# Sets up .venv for development if need be, then runs the tests, on every core the files side by side; arguments go to
# pytest (-n 0 for one process).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment "[app,dev,docs,eval,finetune]" gradio hatchling mcp playwright pytest ruff mypy xdist cell_eval peft vector_quantize_pytorch mkdocs_jupyter mkdocstrings_handlers.python
cd "$root"
exec .venv/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder "$@"
