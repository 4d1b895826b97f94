#!/usr/bin/env bash
# Reading an h5ad file can read other files of the machine: anndata follows what HDF5 points at, without a word.
#
# Seen 2026-11-28 with anndata 0.12.19 and h5py 3.16.0, Python 3.11: HDF5 has external links, virtual datasets and
# external storage; the last makes a dataset of the raw bytes of any file. An h5ad file of some kB whose layer is stored
# so gives the text of a file that lies elsewhere, and one whose X is an external link gives the counts of another file.
# read_h5ad has no option against it. Where strangers send files, as to a web service, they so read the server's files.
# What helps: before reading, walk the links (visititems_links) and refuse h5py.ExternalLink, Dataset.external and
# Dataset.is_virtual. Ends with 1 once this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check anndata==0.12.19 h5py==3.16.0 numpy==2.4.6 \
    pandas==2.3.3 scipy==1.17.1 zarr==3.1.6
cd "$folder"
mkdir elsewhere
venv/bin/python - <<'PYTHON'
import sys

import anndata as ad
import h5py
import numpy as np

text = b"not for you."
with open("elsewhere/own.txt", "wb") as file:
    file.write(text)
ad.AnnData(np.full((3, 4), 7.0, dtype="f4")).write_h5ad("elsewhere/own.h5ad")
ad.AnnData(np.zeros((3, 4), dtype="f4"), layers={"own": np.zeros((3, 4), dtype="u1")}).write_h5ad("sent.h5ad")
with h5py.File("sent.h5ad", "r+") as file:
    kind = dict(file["layers/own"].attrs)
    del file["layers/own"], file["X"]
    file["layers"].create_dataset("own", (3, 4), "u1", external=[("elsewhere/own.txt", 0, 12)]).attrs.update(kind)
    file["X"] = h5py.ExternalLink("elsewhere/own.h5ad", "X")
read = ad.read_h5ad("sent.h5ad")
print("anndata", ad.__version__, "h5py", h5py.__version__, read.layers["own"].tobytes(), read.X[0])
sys.exit(read.layers["own"].tobytes() != text or not (read.X == 7).all())
PYTHON
