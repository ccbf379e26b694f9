#!/usr/bin/env bash
# Generate the Python stubs under clients/fluxsmith/v1 from protos/; `--check` compares instead and fails on a difference.
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
scripts/setup.sh

out=clients
if [ "${1:-}" = --check ]; then
    out="$(mktemp -d)"
    trap 'rm -rf "$out"' EXIT
fi
[ "${1:-}" = --check ] || buf format -w protos
python -m grpc_tools.protoc --proto_path=protos --python_out="$out" --grpc_python_out="$out" \
    --mypy_out="$out" --mypy_grpc_out="$out" protos/fluxsmith/v1/*.proto
if [ "${1:-}" = --check ]; then
    diff -r -x __pycache__ -x __init__.py "$out/fluxsmith/v1" clients/fluxsmith/v1 || {
        say "The checked-in stubs are stale: run 'make proto' and commit the result."
        exit 1
    }
fi
