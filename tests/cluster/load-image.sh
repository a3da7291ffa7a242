#!/usr/bin/env bash
# load-image.sh IMAGE: copy an image built with buildah into the node, unless the node has that very image.
# Only the layers that the node lacks are sent: after a change of code that is one small layer, not 2 GB.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
image=$1
name=${image%:*} tag=${image##*:}
layout=$CLUSTER_HOME/images/oci/${name##*/}

id=$(buildah inspect --type image --format '{{.FromImageID}}' "$image")
held=$("${ctr[@]}" images ls | awk -v ref="$image" '$1 == ref {print $3}')
[[ -n $held && $(cat "$layout.loaded" 2> /dev/null) == "$id $held" ]] && exit 0

# An OCI layout made by hand around the `dir:` transport: buildah would compress the layers of one of its own, every time.
rm -rf "$layout"
mkdir -p "$layout/blobs/sha256"
buildah push -q --disable-compression "$image" "dir:$layout/blobs/sha256"
blobs=$(grep -oE '"digest":"sha256:[0-9a-f]{64}' "$layout/blobs/sha256/manifest.json" | cut -d\" -f4 | sort -u)
size=$(stat -c %s "$layout/blobs/sha256/manifest.json")
manifest=sha256:$(sha256sum "$layout/blobs/sha256/manifest.json" | cut -d' ' -f1)
mv "$layout/blobs/sha256/manifest.json" "$layout/blobs/sha256/${manifest#sha256:}"
echo '{"imageLayoutVersion": "1.0.0"}' > "$layout/oci-layout"
cat > "$layout/index.json" <<J
{"schemaVersion": 2, "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": "$manifest", "size": $size,
  "annotations": {"org.opencontainers.image.ref.name": "$tag"}}]}
J

import() { # import DIGEST…: an archive with these blobs, into the node
  tar -C "$layout" -c oci-layout index.json "${@/#sha256:/blobs/sha256/}" | "${ctr[@]}" images import --base-name "$name" - > /dev/null
}
present=$("${ctr[@]}" content ls -q)
mapfile -t lacking < <(for blob in $blobs; do grep -qx "$blob" <<< "$present" || echo "$blob"; done)
# The node may give up an unused layer between the two steps; then everything is sent.
import "$manifest" ${lacking[@]+"${lacking[@]}"} 2> /dev/null || import "$manifest" $blobs
rm -rf "$layout"
echo "$id $manifest" > "$layout.loaded"
