#!/bin/sh
# Unpack the emoji packages that flux-tiny and the demo are made from: DIR/google/package, DIR/twitter/package.
# Usage: tools/flux_tiny/fetch_emoji.sh DIR        Needs npm and a package registry that it can reach.
set -eu
folder=${1:?usage: fetch_emoji.sh DIR}
for vendor in google twitter; do
    mkdir -p "$folder/$vendor"
    archive=$(cd "$folder/$vendor" && npm pack --silent "emoji-datasource-$vendor@16.0.0")
    tar -xzf "$folder/$vendor/$archive" -C "$folder/$vendor"
    rm "$folder/$vendor/$archive"
    echo "$folder/$vendor/package"
done
