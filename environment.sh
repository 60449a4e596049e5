#!/bin/sh
# Make .venv from the lock. `PYTHON=` names the interpreter; else the first suitable one on the path is taken.
# With --system-packages it only installs the packages that the tests need, with that interpreter.
set -eu
UV_VERSION=0.13.9
NEEDED_GB=12
NEEDED_PYTHON="Python 3.11 to 3.14 with its headers and venv module"
PYTHON_PACKAGES="python3-dev python3-venv"
UV_PYTHON='>=3.11,<3.15'

fail() {
    echo "environment: $1" >&2
    exit 1
}

# A pyenv shim may be on the path and start nothing: each candidate is tried.
suitable() {
    "$1" -c 'if True:
        import ensurepip, sys, sysconfig, venv
        open(sysconfig.get_path("include") + "/Python.h")
        sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null
}

if [ -n "${PYTHON:-}" ]; then
    suitable "$PYTHON" || fail "PYTHON=$PYTHON is not $NEEDED_PYTHON."
else
    for candidate in python3 python3.13 python3.12 python3.11 python3.14; do
        if suitable "$candidate"; then
            PYTHON=$candidate
            break
        fi
    done
fi

if [ "${1:-}" = --system-packages ]; then
    shift
    [ -z "${PYTHON:-}" ] || exec "$PYTHON" tests/system_packages.py "$@"
    command -v uv >/dev/null &&
        exec uv run --no-project --managed-python --python "$UV_PYTHON" tests/system_packages.py "$@"
fi

missing='' packages=''
command -v c++ >/dev/null || command -v g++ >/dev/null ||
    { missing="a C++ compiler" packages=" g++"; }
[ -n "${PYTHON:-}" ] || command -v uv >/dev/null ||
    { missing="${missing:+$missing, }$NEEDED_PYTHON" packages="$packages $PYTHON_PACKAGES"; }
[ -z "$missing" ] || fail "missing: $missing; on Debian or Ubuntu: apt-get install$packages."

free_gb=$(($(df -Pk . | awk 'NR == 2 {print $4}') / 1048576))
[ "$free_gb" -ge "$NEEDED_GB" ] ||
    fail "$free_gb GB are free here and $NEEDED_GB are needed: free some space."

rm -rf .venv
if [ -n "${PYTHON:-}" ]; then
    echo "Making .venv with $("$PYTHON" --version): about 7 GB, a few minutes the first time."
    "$PYTHON" -m venv .venv
    .venv/bin/pip install --quiet --disable-pip-version-check "uv==$UV_VERSION"
    uv=.venv/bin/uv
else
    echo "Making .venv with a Python that uv brings: about 7 GB, a few minutes the first time."
    uv=uv
    uv venv --managed-python --python "$UV_PYTHON" .venv ||
        fail "uv brought no Python; on Debian or Ubuntu: apt-get install $PYTHON_PACKAGES."
fi
"$uv" pip install --python .venv/bin/python --requirement requirements.lock
"$uv" pip install --python .venv/bin/python --quiet --no-deps --editable .
touch .venv/.complete
