#!/usr/bin/env bash
# Run the embedded stack in the foreground: object store, encoder, trainer. Ctrl-C stops all of it.
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
scripts/setup.sh
exec python -m services.stack "$@"
