#!/usr/bin/env bash
# Cell names under an empty heading: pandas 2 cannot be told to read them as text, pandas 3 by two of four ways.
#
# Seen 2026-11-28 with pandas 2.3.3 and 3.0.6, Python 3.11: DataFrame.to_csv writes the index under an empty heading.
# Read back by read_csv(index_col=0, WAY), the names 007 and 1e5 come as 7.0 and 100000.0, without a word, for these WAYs:
#   pandas 2.3.3  dtype={0: str}, dtype={"": str}, dtype={"Unnamed: 0": str}, converters={0: str}
#   pandas 3.0.6  dtype={"": str}, converters={0: str}
# Under a heading, converters={0: str} gives text in both. Barcodes of digits so lose their zeros and match no cell.
# What helps: read the first column apart, as text (the csv module). Ends with 1 once this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
check() {
    python3 -m venv "$folder/$1"
    "$folder/$1/bin/pip" install --quiet --disable-pip-version-check "pandas==$1" numpy==2.4.6
    "$folder/$1/bin/python" - "$2" <<'PYTHON'
import io
import sys

import pandas as pd

WAYS = [{"dtype": {0: str}}, {"dtype": {"": str}}, {"dtype": {"Unnamed: 0": str}}, {"converters": {0: str}}]
written = pd.DataFrame({"x": [1.5, 2.5]}, index=["007", "1e5"]).to_csv()
found = [list(pd.read_csv(io.StringIO(written), index_col=0, **way).index) for way in WAYS]
named = list(pd.read_csv(io.StringIO("cell" + written), index_col=0, converters={0: str}).index)
print("pandas", pd.__version__, "without a heading:", found, "with one:", named)
as_text = "".join("t" if names == ["007", "1e5"] else "n" for names in found)
sys.exit(as_text != sys.argv[1] or named != ["007", "1e5"])
PYTHON
}
check 2.3.3 nnnn # n: taken for numbers, t: text
check 3.0.6 tntn
