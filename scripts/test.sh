#!/usr/bin/env bash
# Run the test suite; arguments go to pytest, such as `scripts/test.sh tests/services -k packing`.
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
scripts/setup.sh
say "Running the tests (twenty to thirty minutes on two cores)"
exec python -m pytest "$@"
