#!/usr/bin/env bash
# Build the documentation site into build/site, from docs/ and the docstrings; what is broken fails it.
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
scripts/setup.sh
NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet "$@"
say "build/site/index.html; with search: $VENV/bin/python -m http.server --bind 127.0.0.1 --directory build/site"
