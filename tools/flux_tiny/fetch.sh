#!/bin/sh
# Unpack the packages that flux-tiny, its judge and the demo are made from: DIR/<package>/package.
# Usage: tools/flux_tiny/fetch.sh DIR        Needs npm and a package registry that it can reach.
set -eu
folder=${1:?usage: fetch.sh DIR}
mkdir -p "$folder"
cd "$folder"
for package in \
    emoji-datasource-google@16.0.0 emojilib@4.0.3 \
    @iconify-json/noto@1.2.9 @iconify-json/noto-v1@1.2.5 \
    @iconify-json/fluent-emoji@1.2.7 @iconify-json/fluent-emoji-flat@1.2.6 @iconify-json/fluent-emoji-high-contrast@1.2.6 \
    @lobehub/fluent-emoji-3d@1.1.0 \
    @iconify-json/fxemoji@1.2.2 @iconify-json/twemoji@1.2.5; do
    archive=$(npm pack --silent "$package")
    name=$(echo "${package%@*}" | tr -d @ | tr / -)
    mkdir -p "$name"
    tar -xzf "$archive" -C "$name"
    rm "$archive"
    echo "$folder/$name"
done
