#!/usr/bin/env bash
# Make stand-ins for the two images that the Dockerfile builds on, under their names:
# Debian with Python, from Debian's packages, and one with nothing but this machine's uv.
# For a machine that reaches no container registry. Needs root, apt, debootstrap,
# buildah and uv.
set -euo pipefail
cd "$(dirname "$0")/../.."
export STORAGE_DRIVER=overlay
python=docker.io/library/$(sed -n 's/^FROM \(python:[^ ]*\)$/\1/p' Dockerfile)
uv=$(sed -n 's/^COPY --from=\(ghcr[^ ]*\) .*/\1/p' Dockerfile)

# Is there an image of this name?
made() { buildah inspect "$1" > /dev/null 2>&1; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if ! made "$uv"; then
    # What is on the PATH may be a wrapper.
    binary=$(uv run --no-project python -c 'import os; print(os.environ["UV"])')
    container=$(buildah from scratch)
    buildah add --quiet "$container" "$binary" /uv
    buildah commit --quiet --rm "$container" "$uv"
fi

if ! made "$python"; then
    mirror=$(apt-get indextargets --format '$(REPO_URI)' \
        'Identifier: Packages' 'Component: main' | head -1)
    debootstrap --variant=minbase --include=python3,ca-certificates \
        trixie "$work/root" "$mirror" > "$work/log" || { tail "$work/log"; exit 1; }
    rm -rf "$work"/root/var/cache/apt/archives/*.deb "$work"/root/var/lib/apt/lists/*
    # Trust what this machine trusts.
    certificates=/etc/ssl/certs/ca-certificates.crt
    cp "$certificates" "$work/root$certificates"
    container=$(buildah from scratch)
    buildah add --quiet "$container" "$work/root" /
    buildah config --env "SSL_CERT_FILE=$certificates" \
        --env PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
    buildah commit --quiet --rm "$container" "$python"
fi
