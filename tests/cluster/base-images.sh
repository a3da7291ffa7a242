#!/usr/bin/env bash
# Build localhost/base:local (Debian bookworm with Python 3.11) and localhost/pause:local, unless they are there.
# Both stand in for images of a registry: the node's sandbox, and the BASE of the project's own images.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

has() { buildah inspect --type image "$1" > /dev/null 2>&1; }
commit() { # commit CONTAINER IMAGE
  buildah commit -q "$1" "$2" > /dev/null
  buildah rm "$1" > /dev/null
}

if ! has localhost/pause:local; then
  cat > pause.c <<'C'
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
static void stop(int s) { _exit(0); }
static void reap(int s) { while (waitpid(-1, NULL, WNOHANG) > 0); }
int main(void) { signal(SIGINT, stop); signal(SIGTERM, stop); signal(SIGCHLD, reap); for (;;) pause(); }
C
  gcc -static -Os -o pause pause.c
  c=$(buildah from scratch)
  buildah copy -q "$c" pause /pause > /dev/null
  buildah config --entrypoint '["/pause"]' "$c"
  commit "$c" localhost/pause:local
fi

if ! has localhost/base:local; then
  debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv,python3-pip bookworm rootfs > debootstrap.log \
    || { tail -n 5 debootstrap.log >&2; exit 1; }
  # Package archives and lists are of no use in an image without a package index.
  rm -rf rootfs/var/cache/apt/archives/*.deb rootfs/var/lib/apt/lists/* rootfs/usr/share/{doc,man,locale}/*
  c=$(buildah from scratch)
  buildah copy -q "$c" rootfs / > /dev/null
  commit "$c" localhost/base:local
fi
