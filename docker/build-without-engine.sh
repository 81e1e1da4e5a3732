#!/bin/sh
# Builds the image on a Debian machine without a container engine, as root: the base by debootstrap instead of a registry,
# the build by buildah in a chroot. Further arguments go to buildah, such as
#   --build-arg TORCH_INDEX=https://pypi.org/simple
#   --secret id=pip,src=pip.conf --volume /path/to/wheels:/path/to/wheels:ro     (a package index of your own)
#
#   apt-get install buildah debootstrap
#   docker/build-without-engine.sh
#   container=$(buildah from localhost/mept-bench:0.1.0)
#   buildah run --isolation chroot "$container" -- mept doctor
set -eu
cd "$(dirname "$0")/.."
base=localhost/mept-base:bookworm
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}

if ! buildah inspect --type image "$base" >/dev/null 2>&1; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$folder/root" "$mirror"
    rm -rf "$folder"/root/var/cache/apt/archives/*.deb "$folder"/root/var/lib/apt/lists/*
    container=$(buildah from scratch)
    buildah add --quiet "$container" "$folder/root" /
    buildah commit --quiet --rm "$container" "$base"
fi
buildah bud --isolation chroot --build-arg BASE="$base" --file docker/Dockerfile --tag localhost/mept-bench:0.1.0 "$@" .
