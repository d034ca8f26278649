#!/usr/bin/env bash
# Make a stand-in for the Dockerfile's base image, under its name: Debian with Python and uv, from Debian's packages and the
# machine's uv. For a machine that reaches no container registry; needs root, debootstrap, buildah and uv.
set -euo pipefail
cd "$(dirname "$0")/../.."
export STORAGE_DRIVER=overlay
image=$(sed -n 's/^ARG BASE=//p' Dockerfile)
! buildah inspect "$image" > /dev/null 2>&1 || exit 0

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' 'Component: main' | head -1)
debootstrap --variant=minbase --include=python3,ca-certificates trixie "$root" "$mirror" > "$root.log" || { tail "$root.log"; exit 1; }
rm -rf "$root.log" "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
uv=$(uv run --no-project python -c 'import os; print(os.environ["UV"])') # on the PATH may be a wrapper
install "$uv" "$root/usr/local/bin/uv"
certificates=/etc/ssl/certs/ca-certificates.crt
cp "$certificates" "$root$certificates"

container=$(buildah from scratch)
buildah add --quiet "$container" "$root" /
buildah config --env PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin --env "SSL_CERT_FILE=$certificates" "$container"
buildah commit --quiet --rm "$container" "$image"
