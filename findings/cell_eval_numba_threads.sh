#!/usr/bin/env bash
# cell-eval asks numba for as many threads as there are processors, and fails where NUMBA_NUM_THREADS allows fewer.
#
# Seen 2026-11-28 with cell-eval 0.8.2, pdex 0.3.0, numba 0.68.1, Python 3.11 on two processors, with NUMBA_NUM_THREADS=1,
# as job scripts set it: MetricsEvaluator(...) with its default num_threads=-1 ends in
#   ValueError: The number of threads must be between 1 and 1
# and works with num_threads=1. (On a machine of one processor there is nothing to see; it then says so.)
# What helps: num_threads=min(processors, numba.config.NUMBA_NUM_THREADS). Ends with 1 once the default works.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    cell-eval==0.8.2 pdex==0.3.0 numba==0.68.1 anndata==0.12.19 pandas==2.3.3 numpy==2.4.6 scipy==1.17.1
cd "$folder"
NUMBA_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PYTHON'
import os
import sys

import anndata as ad
import numpy as np
import pandas as pd
from cell_eval import MetricsEvaluator

if len(os.sched_getaffinity(0)) < 2:
    print("one processor: nothing to see here")
    sys.exit(0)
rng = np.random.default_rng(0)
obs = pd.DataFrame({"target": np.repeat(["non-targeting", "A", "B"], 40)}, index=[f"c{i}" for i in range(120)])
real, predicted = (ad.AnnData(np.log1p(rng.poisson(3.0, (120, 30))).astype(np.float32), obs=obs.copy()) for _ in range(2))
for threads in (1, -1):
    try:
        MetricsEvaluator(predicted.copy(), real.copy(), outdir=f"out{threads}", num_threads=threads)
        print(f"num_threads={threads}: works")
        failed = False
    except ValueError as error:
        print(f"num_threads={threads}: ValueError: {error}")
        failed = True
sys.exit(not failed)
PYTHON
