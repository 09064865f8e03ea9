# Sourced by demo.sh, test.sh and .ci/run: `prepare EXTRA` makes the environment .venv, or reuses it, with that extra
# of pyproject.toml, and leaves the path of its interpreter in $python. $JAXOP_VENV names another place, $JAXOP_PYTHON
# another interpreter to build it with. Needs Python 3.11 or newer and nothing else.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

suits() { # a Python of at least 3.11 that can make environments
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    local candidate
    for candidate in ${JAXOP_PYTHON:-python3 python3.13 python3.12 python3.11 python3.14 python}; do
        if suits "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "error: no Python >= 3.11 with the venv module among: ${JAXOP_PYTHON:-python3, python3.11, ... python3.14};" \
        "install one (on Debian and Ubuntu: python3 and python3-venv), or name one in JAXOP_PYTHON." >&2
    return 1
}

prepare() {
    local extra=$1 venv=${JAXOP_VENV:-.venv} base stamp
    python=$venv/bin/python
    if "$python" -m pip --version >/dev/null 2>&1; then
        for stamp in "$extra" dev; do # dev includes all others
            if cmp -s pyproject.toml "$venv/installed-$stamp.toml"; then
                return
            fi
        done
        echo "updating $venv: jaxop[$extra]"
    else
        base=$(find_python)
        echo "setting up $venv: $("$base" --version) and jaxop[$extra]; a few minutes the first time"
        "$base" -m venv --clear "$venv"
    fi
    "$python" -m pip install --quiet --quiet --disable-pip-version-check --editable ".[$extra]"
    cp pyproject.toml "$venv/installed-$extra.toml"
}
