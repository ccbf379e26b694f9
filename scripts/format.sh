#!/usr/bin/env bash
# Rewrite Python and protobuf sources in the project's format.
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
scripts/setup.sh
ruff check --fix-only --quiet .
ruff format .
buf format -w protos
