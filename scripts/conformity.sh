#!/usr/bin/env bash
# transformers' own tests of models, on ours: fetches them once, then runs tests/conformity; arguments go to pytest.
# They stand in the source distribution on PyPI of the installed version (10 MB), not in the wheel.
#   bash scripts/conformity.sh [--fetch]     --fetch only fetches
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$root/.venv/bin/python
version=$("$python" -c 'from importlib.metadata import version; print(version("transformers"))')
place=$root/.venv/transformers-tests/$version
if [ ! -d "$place" ]; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    "$python" -m pip download --quiet --disable-pip-version-check --retries 1 --no-deps --no-build-isolation \
        --no-binary transformers --dest "$folder" "transformers==$version"
    tar xzf "$folder/transformers-$version.tar.gz" -C "$folder" "transformers-$version/tests"
    touch "$folder/transformers-$version/tests/__init__.py" # which they import, and which is not packed
    mkdir -p "$(dirname "$place")"
    mv "$folder/transformers-$version" "$place"
fi
[ "${1:-}" != --fetch ] || exit 0
cd "$root"
exec "$python" -m pytest tests/conformity "$@"
