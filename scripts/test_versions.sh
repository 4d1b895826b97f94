#!/usr/bin/env bash
# Tests the package with other versions of Python and of the libraries than those of scripts/constraints.txt:
#
#   bash scripts/test_versions.sh                                   # all rows
#   PYTEST_ADDOPTS=-x bash scripts/test_versions.sh lowest          # these, with arguments for pytest
#
#   lowest           Python 3.11, every dependency at the lower bound that pyproject.toml states
#   newest-3.12      Python 3.12, the newest of everything that the package index serves
#   newest-3.13      Python 3.13, likewise
#   transformers-4   the last transformers 4 and the last huggingface_hub below 1; the rest is that of .venv
#   transformers-5   the first transformers 5 and a huggingface_hub 1, likewise
#
# The environments lie in .venv/versions and are kept. The first three take some minutes and 6 GB each, as PyPI serves
# torch with CUDA. They run TESTS, the last two HUB_TESTS: some minutes a row. A row fails if its environment cannot be
# made or a test fails; all rows are run, and the exit code says whether one failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

HUB_TESTS=(tests/hub tests/inference/test_checkpoint.py tests/models/test_hub_zone.py tests/models/test_generation.py)
TESTS=("${HUB_TESTS[@]}" tests/data tests/training/test_stages.py tests/training/resume
    tests/inference/test_pipeline.py tests/inference/test_embedding.py tests/reversion/test_sources.py
    tests/evaluation/test_run.py tests/cli/test_commands.py)
# The network of huggingface_hub below 2, which .venv lacks.
NETWORK=(httpx==0.28.1 httpcore==1.0.9 requests urllib3 certifi charset-normalizer idna h11 anyio)

row_lowest() {
    bounds > "$place.txt" && own 3.11 -r "$place.txt" && tests "${TESTS[@]}"
}
row_newest-3.12() { own 3.12 && tests "${TESTS[@]}"; }
row_newest-3.13() { own 3.13 && tests "${TESTS[@]}"; }
row_transformers-4() {
    shared transformers==4.57.6 huggingface_hub==0.36.2 tokenizers==0.22.2 datasets==4.4.1 "${NETWORK[@]}" &&
        tests "${HUB_TESTS[@]}"
}
row_transformers-5() {
    shared transformers==5.0.0 huggingface_hub==1.33.0 tokenizers==0.22.2 "${NETWORK[@]}" && tests "${HUB_TESTS[@]}"
}

# A Python of that version: on the PATH, or one of pyenv's.
python() {
    local found
    for found in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
        "$found" -c "" 2> /dev/null && echo "$found" && return
    done
    echo "error: no Python $1 here; install it, or put python$1 on the PATH" >&2
    return 1
}

# The dependencies of pyproject.toml, each at its lower bound.
bounds() {
    "$(python 3.11)" -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]
print(*(line.split(",")[0].replace(">=", "==") for line in project["dependencies"]), sep="\n")'
}

# `own PYTHON REQUIREMENT...`: an environment with nothing but the package, what it needs and pytest.
own() {
    local base
    base=$(python "$1") && shift &&
        { [ -x "$place/bin/python" ] || "$base" -m venv "$place"; } &&
        "$place/bin/python" -m pip install -qq --upgrade --upgrade-strategy eager -e . pytest "$@"
}

# `shared REQUIREMENT...`: an environment that has these and takes all else from .venv.
shared() {
    [ -x .venv/bin/python ] || bash scripts/test.sh --collect-only -q > /dev/null || return
    [ -x "$place/bin/python" ] || .venv/bin/python -m venv "$place" || return
    .venv/bin/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
        > "$(echo "$place"/lib/python3*/site-packages)/rest.pth" &&
        "$place/bin/python" -m pip install -qq --no-deps "$@"
}

tests() {
    "$place/bin/python" -m pip list --format=freeze 2> /dev/null |
        grep -iE '^(accelerate|anndata|datasets|huggingface.hub|numpy|pandas|pyarrow|torch|transformers)==' | xargs
    "$place/bin/python" -m pytest -q -p no:cacheprovider "$@"
}

failed=()
[ $# -gt 0 ] || set -- lowest newest-3.12 newest-3.13 transformers-4 transformers-5
mkdir -p .venv/versions
for row in "$@"; do
    place=.venv/versions/$row
    echo "== $row"
    "row_$row" || failed+=("$row")
done
echo "== failed rows: ${failed[*]:-none}"
[ ${#failed[@]} -eq 0 ]
