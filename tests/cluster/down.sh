#!/usr/bin/env bash
# Stop the cluster that up.sh started and remove its state, whatever has been killed before; binaries and images stay.
set -uo pipefail
source "$(dirname "$0")/lib.sh"

answers() { # up to ten seconds for containerd to come back
  local _
  for _ in $(seq 50); do
    "${ctr[@]}" version > /dev/null 2>&1 && return
    sleep 0.2
  done
  return 1
}

for service in kueue kuberay local-path kubelet scheduler controllers proxy coredns; do stop $service; done
# Containers outlive a containerd that was killed. A new one finds their shims again, so that none has to be guessed.
if ! running containerd && [[ -d $tasks && -e $run/containerd.toml ]]; then
  start containerd containerd -c "$run/containerd.toml"
fi
if running containerd && answers; then
  for id in $("${ctr[@]}" tasks ls -q 2> /dev/null); do "${ctr[@]}" tasks kill -s KILL "$id" 2> /dev/null; done
  sleep 1
  for id in $("${ctr[@]}" containers ls -q 2> /dev/null); do
    "${ctr[@]}" tasks rm -f "$id"
    namespaces+=" $("${ctr[@]}" containers info "$id" | grep -oE '/run/netns/cni-[0-9a-f-]+')"
    "${ctr[@]}" containers rm "$id"
  done > /dev/null 2>&1
fi
for service in apiserver etcd containerd; do stop $service; done

for folder in "$run" "$node"; do
  awk -v under="$folder/" 'index($2, under) == 1 {print $2}' /proc/mounts | sort -r | xargs -r umount -l
done
for namespace in ${namespaces:-}; do
  umount -l "$namespace" 2> /dev/null
  rm -f "$namespace"
done
ip link del finetune0 2> /dev/null
rm -rf "$run" "$node" /etc/cni/net.d/10-finetune.conflist /var/lib/cni/networks/finetune
