#!/usr/bin/env bash
# datasets: rows formatted as numpy or torch lose the zero bytes at the end of a binary value.
#
# Seen 2026-11-28 with datasets 5.2.0, numpy 2.4.6, Python 3.11: a column of Value("binary") that holds b"\x01\x00" gives
# b"\x01" under with_format("numpy"), plain and streaming, without a word; with_format(None) and "arrow" give both bytes.
# (Under "torch" the same was seen; it is left out here, for torch is large.) Arrays stored as bytes, such as the
# little-endian indices of a sparse row, so lose their last byte whenever it is zero.
# What helps: decode such columns from unformatted or arrow rows. Ends with 1 once the bytes stay.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0 numpy==2.4.6 pandas==2.3.3
HF_HUB_OFFLINE=1 HF_HOME="$folder" "$folder/venv/bin/python" - <<'PYTHON'
import sys

from datasets import Dataset, Features, Value

rows = Dataset.from_dict({"bytes": [b"\x01\x00"]}, features=Features({"bytes": Value("binary")}))
found = {}
for name in (None, "numpy"):
    found[name] = [bytes(rows.with_format(name)[0]["bytes"])]
    found[name].append(bytes(next(iter(rows.to_iterable_dataset().with_format(name)))["bytes"]))
print("plain and streaming:", found)
sys.exit(found[None] != [b"\x01\x00"] * 2 or found["numpy"] != [b"\x01"] * 2)
PYTHON
