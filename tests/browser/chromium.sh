#!/usr/bin/env bash
# Prints the path of a Chromium; installs Debian's where there is none and it may.
set -euo pipefail

find_one() {
    for name in ${EVOSPEC_CHROMIUM:-} chromium chromium-browser google-chrome; do
        command -v "$name" && return 0
    done
    return 1
}

find_one && exit 0
echo 'browser tests need Chromium: installing the package "chromium"' >&2
if [ "$(id -u)" -eq 0 ]; then as_root=(); else as_root=(sudo -n); fi
if ! command -v apt-get >/dev/null || ! "${as_root[@]}" true 2>/dev/null; then
    echo 'there is no Chromium, and it can only be installed by root: sudo apt-get install chromium,' >&2
    echo 'or name one in EVOSPEC_CHROMIUM' >&2
    exit 1
fi
"${as_root[@]}" apt-get -qq update >&2
DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get -qq install -y --no-install-recommends \
    chromium fonts-liberation >&2
find_one
