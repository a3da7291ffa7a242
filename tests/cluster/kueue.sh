#!/usr/bin/env bash
# kueue.sh up | down: Kueue as a process of the host beside the cluster of up.sh, for the tests of queues. RayClusters
# without a queue's name never meet its webhooks, and `down` takes these away before it ends the process.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
export KUBECONFIG=$run/admin.kubeconfig
home=$run/kueue
ready() { curl -sf --max-time 5 http://127.0.0.1:18092/readyz; }
webhooks=(mutatingwebhookconfiguration/kueue-mutating-webhook-configuration validatingwebhookconfiguration/kueue-validating-webhook-configuration)

up() {
  if running kueue && ready > /dev/null; then return; fi
  mkdir -p "$home" /etc/kueue/metrics/certs
  openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1 \
    -keyout "$home/tls.key" -out "$home/tls.crt" 2> /dev/null
  cp "$home"/tls.* /etc/kueue/metrics/certs # it reads them even with its metrics off
  cat > "$home/config.yaml" <<C
apiVersion: config.kueue.x-k8s.io/v1beta2
kind: Configuration
health: {healthProbeBindAddress: "127.0.0.1:18092"}
metrics: {bindAddress: "0"}
webhook: {host: 127.0.0.1, port: 9443, certDir: $home}
leaderElection: {leaderElect: false}
internalCertManagement: {enable: false}
integrations: {frameworks: [ray.io/raycluster]}
C
  "$root/.venv/bin/python" "$here/kueue_objects.py" "$CLUSTER_HOME/kueue.yaml" "$home/tls.crt" https://127.0.0.1:9443 > "$home/objects.yaml"
  kubectl apply --server-side --force-conflicts -f "$home/objects.yaml" > /dev/null
  wait_for kueue "Kueue's CRDs" kubectl get workloads.v1beta2.kueue.x-k8s.io,clusterqueues.v1beta2.kueue.x-k8s.io -A
  start kueue kueue --config "$home/config.yaml" --kubeconfig "$KUBECONFIG" --feature-gates=VisibilityOnDemand=false
  wait_for kueue "Kueue" ready
}

down() {
  kubectl delete "${webhooks[@]}" --ignore-not-found > /dev/null
  stop kueue
}

"$1"
