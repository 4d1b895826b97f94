#!/usr/bin/env bash
# LocalCluster(dashboard_address=None) of Dask still serves HTTP, on port 8787 of every network interface.
#
# Seen 2026-11-28 with distributed 2026.8.0, Python 3.11: the docstring says "Set to None to disable the dashboard". The
# scheduler then listens on 0.0.0.0:8787 all the same, as without the argument, and answers at /health; where the port is
# taken it warns and takes another. What helps: dashboard_address="127.0.0.1:0", a free port that only this machine
# reaches, and no warning. Ends with 1 once this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check distributed==2026.8.0 dask==2026.8.0 tornado==6.6.1
cd "$folder"
NO_PROXY=127.0.0.1 venv/bin/python - <<'PYTHON'
import sys
import urllib.request
import warnings

from distributed import LocalCluster


def listening(address):
    """Where the scheduler's HTTP server listens, and what it answers there."""
    with LocalCluster(n_workers=0, processes=False, dashboard_address=address) as cluster:
        ends = [s.getsockname()[:2] for s in cluster.scheduler.http_server._sockets.values()]
        port = ends[0][1]
        return ends, urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10).read()


warnings.simplefilter("ignore")  # of a port that is taken
found = {address: listening(address) for address in (None, "127.0.0.1:0")}
for address, (ends, answer) in found.items():
    print(f"dashboard_address={address!r}: listens on {ends}, answers {answer}")
everywhere = {"0.0.0.0", "::"}
still = {host for host, _ in found[None][0]} & everywhere and not {h for h, _ in found["127.0.0.1:0"][0]} & everywhere
sys.exit(0 if still and found[None][1] == b"ok" else 1)
PYTHON
