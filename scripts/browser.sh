#!/usr/bin/env bash
# Print the path of the Chromium that some tests drive; with `--install`, get Debian's where there is none.
# Without one it fails with a line that says how to get it. FLUXSMITH_CHROMIUM names another.
set -euo pipefail

find_browser() {
    if [ -n "${FLUXSMITH_CHROMIUM:-}" ]; then
        command -v "$FLUXSMITH_CHROMIUM"
        return
    fi
    command -v chromium || command -v chromium-browser || command -v google-chrome
}

if [ "${1:-}" = --install ] && ! find_browser >/dev/null; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "Tests in a browser need Chromium: install it as root with a package manager, or set FLUXSMITH_CHROMIUM." >&2
        exit 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update
    apt-get -qq -o DPkg::Lock::Timeout=300 install --yes --no-install-recommends chromium >/dev/null
fi
find_browser || {
    echo "Tests in a browser are left out, for there is no Chromium: sudo apt-get install chromium, or set FLUXSMITH_CHROMIUM." >&2
    exit 1
}
