#!/usr/bin/env bash
# images.sh buildah|docker: build both images of the project, each only when its inputs have changed since.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
engine=$1
cd "$root"
mkdir -p "$CLUSTER_HOME/images"

# Where torch's wheel may lie already; requirements/install_torch.py decides in the build whether it fits.
for wheels in "${TORCH_WHEELS:-}" "$root/build/wheels" "$root/../shared/wheels"; do
  compgen -G "$wheels/torch-*.whl" > /dev/null && break
  wheels=
done
bundle=/etc/ssl/certs/ca-certificates.crt

inputs() { # inputs FILE…: one hash over the base image, torch's source, its wheel's name and these files and folders
  {
    [[ $engine == docker ]] || buildah inspect --type image --format '{{.FromImageID}}' localhost/base:local
    echo "${TORCH_SOURCE:-} ${TORCH_INDEX:-}"
    [[ -z $wheels ]] || (cd "$wheels" && ls torch-*.whl)
    find "$@" -type f -not -path '*/__pycache__/*' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
  } | sha256sum
}

bud() { # bud IMAGE DOCKERFILE [OPTION…]
  local image=$1 dockerfile=$2 file
  shift 2
  if [[ $engine == docker ]]; then
    docker build --quiet -t "$image" -f "$dockerfile" "$@" .
    return
  fi
  # What this machine trusts and how its package tools are configured hold inside the build as well, and stay outside the image.
  local options=(--layers --isolation chroot --pull-never --build-arg BASE=localhost/base:local)
  [[ ! -e $bundle ]] || options+=(-v /etc/ssl/certs:/etc/ssl/certs:ro --build-arg "SSL_CERT_FILE=$bundle")
  for file in /etc/resolv.conf /etc/pip.conf /etc/uv/uv.toml; do [[ ! -e $file ]] || options+=(-v "$file:$file:ro"); done
  buildah --storage-driver overlay bud "${options[@]}" -t "$image" -f "$dockerfile" "$@" .
}

build() { # build NAME DOCKERFILE HASH [OPTION…]
  local image=localhost/$1:dev record=$CLUSTER_HOME/images/$1.inputs log=$CLUSTER_HOME/images/$1.log dockerfile=$2 hash="$engine $3"
  shift 3
  if [[ $(cat "$record" 2> /dev/null) == "$hash" ]] && exists "$image"; then return; fi
  say "building $image"
  rm -f "$record"
  bud "$image" "$dockerfile" "$@" 2>&1 | tee "$log" | sed -un 's/^torch: /cluster: &/p' >&2 || { tail -n 30 "$log" >&2; say "$image was not built"; exit 1; }
  echo "$hash" > "$record"
}
exists() { if [[ $engine == docker ]]; then docker image inspect "$1"; else buildah inspect --type image "$1"; fi > /dev/null 2>&1; }

project=(.dockerignore LICENSE README.md pyproject.toml requirements operator trainer_image/finetune_trainer)
build finetune-operator Dockerfile "$(inputs Dockerfile "${project[@]}")"
build finetune-trainer trainer_image/Dockerfile "$(inputs trainer_image/Dockerfile examples "${project[@]}")" \
  --build-arg "TORCH_SOURCE=${TORCH_SOURCE:-}" --build-arg "TORCH_INDEX=${TORCH_INDEX:-}" ${wheels:+--build-context "wheels=$wheels"}
