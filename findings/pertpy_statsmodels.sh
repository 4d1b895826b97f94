#!/usr/bin/env bash
# pertpy cannot be imported beside statsmodels 0.15, which its own installation brings: it wants a function from the
# sandbox, statsmodels.sandbox.stats.multicomp.multipletests, that is no longer there (it is in statsmodels.stats.multitest).
#
# Seen 2026-11-28 with pertpy 1.0.3 and statsmodels 0.15.0, Python 3.11: `import pertpy` ends in
#   ImportError: cannot import name 'multipletests' from 'statsmodels.sandbox.stats.multicomp'
# and `pip check` has nothing to say of the two. With statsmodels 0.14.6 it works.
# What helps: pip install 'statsmodels<0.15'. Ends with 1 once the import works.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 2>/dev/null
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 pertpy==1.0.3 scvi-tools==1.4.2 statsmodels==0.15.0 anndata==0.12.19 numpy==2.4.6 pandas==2.3.3 2>/dev/null
cd "$folder"
"$folder/venv/bin/pip" check 2>/dev/null | grep -i "pertpy.*statsmodels" && { echo "pip check names it now"; exit 1; }
import_it() { CUDA_VISIBLE_DEVICES='' "$folder/venv/bin/python" -W ignore -c 'import pertpy; print("imported")' 2>&1 | tail -1; }
said=$(import_it || true)
echo "statsmodels 0.15.0: $said"
[[ $said == *"cannot import name 'multipletests'"* ]] || exit 1
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check statsmodels==0.14.6 2>/dev/null
said=$(import_it || true)
echo "statsmodels 0.14.6: $said"
[[ $said == imported ]]
