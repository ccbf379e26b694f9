# Sourced by the other scripts: where things are, and settings that every process of the project runs under.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export VENV="${FLUXSMITH_VENV:-$PWD/.venv}"
export PATH="$VENV/bin:$PATH"
# Several processes share few cores: OpenMP threads that spin while they wait take the cores from the others.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
# Nothing is ever fetched from a model hub unless asked for.
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" HF_HUB_DISABLE_TELEMETRY=1
export TRANSFORMERS_VERBOSITY="${TRANSFORMERS_VERBOSITY:-error}" DIFFUSERS_VERBOSITY="${DIFFUSERS_VERBOSITY:-error}"

say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }
