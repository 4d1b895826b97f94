#!/usr/bin/env bash
# The whole way on a small scale, from a fresh checkout: sets up .venv if need be, then runs `evae demo`.
#
#   bash scripts/demo.sh                                           simulated cells, at most 10 minutes on 2 cores
#   bash scripts/demo.sh --data FILE.h5ad --perturbation-key KEY --cell-type-key KEY --control LABEL
#
# All options: bash scripts/demo.sh --help. Relative paths count from where it is called.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment ""
exec "$root/.venv/bin/evae" demo "$@"
