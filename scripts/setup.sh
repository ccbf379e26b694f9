#!/usr/bin/env bash
# Make the virtual environment with pinned dependencies; does nothing when it is already up to date.
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

wanted="$(cat requirements/constraints.txt pyproject.toml scripts/setup.sh | sha256sum | cut -d' ' -f1)"
[ "$(cat "$VENV/.fluxsmith-setup" 2>/dev/null)" = "$wanted" ] && exit 0

python="${PYTHON:-python3}"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    say "Python 3.11 or later is needed; this is $("$python" --version). Set PYTHON to one, such as PYTHON=python3.12."
    exit 1
}
"$python" -c 'import ensurepip, venv' 2>/dev/null || {
    say "Python's venv module is missing: sudo apt-get install python3-venv"
    exit 1
}
say "Setting up $VENV (about 2 GB; one to five minutes, once)"
"$python" -m venv "$VENV"
pip=("$VENV/bin/python" -m pip --disable-pip-version-check --quiet)
"${pip[@]}" install pip==25.3
# First and alone: every later package is content with this torch, so none pulls another one with gigabytes of CUDA.
"${pip[@]}" install torch==2.13.0
"${pip[@]}" install --constraint requirements/constraints.txt --group dev --editable '.[all]'
"${pip[@]}" check
echo "$wanted" >"$VENV/.fluxsmith-setup"
