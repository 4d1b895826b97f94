# Sourced by demo.sh and test.sh: `environment EXTRAS MODULE...` makes .venv with the package installed in place
# (at the tested versions) unless the modules are there already. PYTHON names another interpreter.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

environment() {
    local extras=$1
    shift
    local find='import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, sys.argv[1:])))'
    if "$root/.venv/bin/python" -c "$find" evae "$@" 2>/dev/null; then
        return
    fi
    local python=${PYTHON:-python3}
    if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
        echo "error: evae needs Python 3.11, 3.12 or 3.13; set PYTHON to one, for example PYTHON=python3.12" >&2
        exit 2
    fi
    echo "Setting up $root/.venv with $("$python" --version), once; about 3 minutes."
    "$python" -m venv "$root/.venv"
    "$root/.venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off \
        -c "$root/scripts/constraints.txt" -e "$root$extras" |
        awk '/^Collecting /     { printf "%s ", $2; fflush() }
             /^Installing coll/ { print "\nunpacking ..."; fflush() }'
    echo "Set-up done."
}
