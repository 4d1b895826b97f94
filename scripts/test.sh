#!/usr/bin/env bash
# Sets up .venv for development if need be, then runs the tests, on every core the files side by side; arguments go to
# pytest (-n 0 for one process).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment "[app,cluster,dev,docs,drugs,eval,finetune,soma]" gradio distributed duckdb hatchling mcp parameterized playwright pytest rdkit ruff mypy xdist cell_eval peft vector_quantize_pytorch mkdocs_jupyter mkdocstrings_handlers.python vcc
bash "$root/scripts/conformity.sh" --fetch || echo "transformers' tests could not be fetched; tests/conformity is left out." >&2
cd "$root"
exec .venv/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder "$@"
