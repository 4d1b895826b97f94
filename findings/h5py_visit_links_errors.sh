#!/usr/bin/env bash
# An error raised in the function of h5py's visititems_links comes out as a SystemError, and the message is lost.
#
# Seen 2026-11-28 with h5py 3.16.0, Python 3.11: File.visititems and File.visit hand on the error of the function that
# they are given. visititems_links and visit_links, which alone see external and soft links, raise
# "SystemError: <cyfunction FastRLock.__exit__ ...> returned a result with an exception set" in its place, so
# `except ValueError` around them catches nothing. What helps: return a value, which ends the walk and is handed on.
# Ends with 1 once this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check h5py==3.16.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import sys

import h5py


def complain(*_):
    raise ValueError("mine")


found = {}
with h5py.File("cells.h5", "w") as file:
    file["a/b"] = 1
    for way in ("visit", "visititems", "visit_links", "visititems_links"):
        try:
            getattr(file, way)(complain)
        except BaseException as error:
            found[way] = type(error).__name__
    value = file.visititems_links(lambda name, link: f"met {name}")
print("h5py", h5py.__version__, found, value)
expected = {"visit": "ValueError", "visititems": "ValueError"}
expected |= {"visit_links": "SystemError", "visititems_links": "SystemError"}
sys.exit(found != expected or value != "met a")
PYTHON
