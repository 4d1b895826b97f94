#!/usr/bin/env bash
# A notebook whose first figure is made within rc_context shows that figure, and no later one.
#
# Seen 2026-11-28 with matplotlib 3.11.2, matplotlib-inline 0.2.2, ipykernel 7.4.0, Python 3.11: the inline backend is
# loaded by the first figure and then turns `interactive` on. rc_context puts all settings back when it ends, this one
# too, and flush_figures shows what was made while interactive. A library that draws with a look of its own so silences
# the figures of the notebook's author as well. (`import matplotlib.pyplot` alone does not load the backend.)
# What helps: plt.draw_if_interactive() before rc_context. Ends with 1 once both figures are shown.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    matplotlib==3.11.2 matplotlib-inline==0.2.2 ipykernel==7.4.0 nbclient==0.11.0
cd "$folder"
PATH="$folder/venv/bin:$PATH" "$folder/venv/bin/python" - <<'PYTHON'
import sys

import nbformat
from nbclient import NotebookClient

STYLED = "import matplotlib as mpl\nimport matplotlib.pyplot as plt\nwith mpl.rc_context({'font.size': 9}):\n    plt.figure().add_subplot()"
LOADED = "import matplotlib.pyplot as plt\nplt.draw_if_interactive()"


def figures(*cells):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, kernel_name="python3").execute()
    return [sum("image/png" in output.get("data", {}) for output in cell.outputs) for cell in notebook.cells]


plain = "plt.figure().add_subplot()"
found, loaded = figures(STYLED, STYLED, plain), figures(LOADED, STYLED, plain)
print("figures shown, cell by cell:", found, "with the backend loaded first:", loaded)
sys.exit(found != [1, 0, 0] or loaded != [0, 1, 1])
PYTHON
