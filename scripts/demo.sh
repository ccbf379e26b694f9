#!/usr/bin/env bash
# Set up, start the embedded stack on free ports, train a LoRA on assets/demo, write demo-output/.
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
scripts/setup.sh
say "Loading the libraries"
exec python -m demo "$@"
