#!/usr/bin/env bash
# Tests loading and publishing with the oldest transformers and huggingface_hub that are supported, and with the first
# of their present major versions. Each gets an environment inside .venv that takes all else from it; test.sh makes .venv
# and tests the newest. Arguments go to pytest. Takes some minutes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
failed=0

check() {
    local name=$1 place
    shift
    place=.venv/versions/$name
    if [ "$(cat "$place/ready" 2>/dev/null)" != "$*" ]; then
        .venv/bin/python -m venv --clear "$place"
        .venv/bin/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
            > "$(echo "$place"/lib/python3*/site-packages)/rest.pth"
        "$place/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "$@"
        echo "$*" > "$place/ready"
    fi
    echo "== $*"
    "$place/bin/python" -m pytest -q -p no:cacheprovider \
        tests/hub tests/test_loading.py tests/models/test_hub_zone.py tests/models/test_generation.py \
        "${pytest_arguments[@]}" || failed=1
}

pytest_arguments=("$@")
network=(httpx==0.28.1 httpcore==1.0.9 requests urllib3 certifi charset-normalizer idna h11 anyio)
check transformers-4 transformers==4.57.6 huggingface_hub==0.36.2 tokenizers==0.22.2 datasets==4.4.1 \
    "${network[@]}"
check transformers-5 transformers==5.0.0 huggingface_hub==1.33.0 tokenizers==0.22.2 "${network[@]}"
exit "$failed"
