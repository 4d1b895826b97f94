#!/usr/bin/env bash
# A LocalCluster of Dask leaves OMP_NUM_THREADS=1 and others set in the environment of the process that started it, also
# when it is closed: whatever that process starts later, a training for instance, computes on one thread.
#
# Seen 2026-11-29 with distributed 2026.8.0, Python 3.11: the variables of distributed.nanny.pre-spawn-environ, meant for
# the workers, are written into os.environ before these are spawned and stay there (OMP_NUM_THREADS, MKL_NUM_THREADS and
# OPENBLAS_NUM_THREADS 1, MALLOC_TRIM_THRESHOLD_ 65536). With the last one glibc in a child process no longer keeps the
# memory of large arrays that were freed. What helps: restore os.environ once the cluster has started. Ends with 1 once
# this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check distributed==2026.8.0 dask==2026.8.0 tornado==6.6.1
cd "$folder"
cat >try.py <<'PY'
import os
from distributed import LocalCluster

NAMES = ("OMP_NUM_THREADS", "MALLOC_TRIM_THRESHOLD_")
if __name__ == "__main__":
    for name in NAMES:
        os.environ.pop(name, None)
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0"):
        pass
    print([os.environ.get(name) for name in NAMES])
PY
said=$("$folder/venv/bin/python" -W ignore try.py)
echo "after the cluster is closed: $said"
[[ $said == "['1', '65536']" ]]
