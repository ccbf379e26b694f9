#!/usr/bin/env bash
# Run the test suite; arguments go to pytest, such as `scripts/test.sh tests/services -k packing`, or `-n 0 --pdb`.
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
scripts/setup.sh
say "Running the tests (about fifteen minutes on two cores)"
scripts/browser.sh >/dev/null || true
# Two at a time, a file each: tests of whole stacks mostly wait.
exec python -m pytest -n 2 --dist loadfile "$@"
