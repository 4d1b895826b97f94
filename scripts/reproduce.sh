#!/usr/bin/env bash
# A published benchmark from the download to the Hub; sets up .venv if need be. Options: reproduce.sh --help
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment ""
exec "$root/.venv/bin/python" "$root/scripts/reproduce.py" "$@"
