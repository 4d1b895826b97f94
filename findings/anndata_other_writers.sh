#!/usr/bin/env bash
# Two files that anndata opens without a word as what they are not.
#
# Seen 2026-11-28 with anndata 0.12.19 and 0.13.4, h5py 3.16.0, mudata 0.4.1:
# 1. SeuratDisk 0.0.0.9021 (Convert to h5ad) stores a factor as numbers and its levels in obs/__categories, without the
#    reference that anndata before 0.8 looks for. read_h5ad gives the numbers: cell types 0, 1, 2, a missing one
#    -2147483648. (The file here is laid out by h5py as SeuratDisk's source says.)
# 2. read_h5ad(FILE.h5mu, backed="r") gives one AnnData: the cells by the genes of all modalities, without X.
# What helps: read the levels from obs/__categories; read_elem(file["mod/rna"]). Ends with 1 once this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${PYTHON312:-python3.12} # the newer versions need it
check() {
    "$python" -m venv "$folder/$1"
    "$folder/$1/bin/pip" install --quiet --disable-pip-version-check "anndata==$1" h5py==3.16.0 mudata==0.4.1
    "$folder/$1/bin/python" -W ignore - "$folder/$1" <<'PYTHON'
import sys

import anndata as ad
import h5py
import mudata
import numpy as np

path = sys.argv[1] + "/cells"
rna, protein = ad.AnnData(np.ones((3, 4))), ad.AnnData(np.ones((3, 2)))
protein.var_names = ["CD3", "CD4"]
mudata.MuData({"rna": rna, "protein": protein}).write(path + ".h5mu")
shape = ad.read_h5ad(path + ".h5mu", backed="r").shape
text = h5py.string_dtype()
with h5py.File(path + ".h5ad", "w") as file:
    file["X"] = np.ones((3, 2), "f4")
    for table, names in (("obs", "abc"), ("var", "AB")):
        group = file.create_group(table)
        group.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.1.0", "_index": "_index"})
        group.create_dataset("_index", data=list(names), dtype=text)
        group.attrs.create("column-order", ["label"], dtype=text)
        group["label"] = np.array([1, 0, -(2**31)][: len(names)], "i4")
        group.create_dataset("__categories/label", data=["stem cell", "T cell"], dtype=text)
labels = ad.read_h5ad(path + ".h5ad").obs["label"].tolist()
print("anndata", ad.__version__, "labels", labels, "shape", shape)
sys.exit(labels != [1, 0, -(2**31)] or shape != (3, 6))
PYTHON
}
check 0.12.19
check 0.13.4
