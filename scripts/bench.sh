#!/usr/bin/env bash
# Measure the full-size FLUX.1-dev configuration with random weights on one CUDA GPU.
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
scripts/setup.sh
exec python -m benchmarks.gpu --out benchmarks/results "$@"
