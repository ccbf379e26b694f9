#!/usr/bin/env bash
# Check style, types, the contract, and that the generated stubs are those of the contract.
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
scripts/setup.sh
say "ruff"
ruff check .
ruff format --check .
say "mypy"
mypy clients services demo benchmarks tools tests
say "buf: lint, format, and nothing that breaks callers of the released contract"
buf lint protos
buf format --diff --exit-code protos
buf breaking protos --against protos/released.binpb
say "stubs, and the twin of the async client"
scripts/proto.sh --check
python scripts/make_sync.py --check
