#!/usr/bin/env bash
# Sets up .venv for development if need be, then runs the tests; arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment "[dev,eval]" pytest ruff mypy cell_eval vector_quantize_pytorch
cd "$root"
exec .venv/bin/python -m pytest "$@"
