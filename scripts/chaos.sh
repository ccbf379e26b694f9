#!/usr/bin/env bash
# Break the stack on purpose while jobs run, and write docs/chaos.md; `scripts/chaos.sh soak` runs 2,000 jobs instead.
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
scripts/setup.sh
if [ "${1:-}" = soak ]; then
    shift
    exec python -m tests.chaos.soak "$@"
fi
exec python -m tests.chaos "$@"
