#!/usr/bin/env bash
# Start a single-node Kubernetes (real kubelet, containerd, kube-proxy, CoreDNS, local-path volumes, KubeRay) as host
# processes, or find it running and healthy, and print the kubeconfig to use. Needs root, the binaries of build.sh and
# the images of base-images.sh.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
pods=10.244.0 cluster_ips=10.96 # both stay on this machine: the bridge is their only route
export KUBECONFIG=$run/admin.kubeconfig

node_ready() { [[ $(kubectl get node node-1 --request-timeout=5s -o jsonpath='{.status.conditions[?(@.type=="Ready")].status}') == True ]]; }
kuberay_ready() { curl -sf --max-time 5 http://127.0.0.1:18082/healthz; }
healthy() {
  local service
  for service in "${services[@]}"; do running "$service" || return; done
  kubectl get --raw /readyz --request-timeout=5s && node_ready && kuberay_ready
}
if healthy > /dev/null 2>&1; then
  echo "$KUBECONFIG"
  exit
fi
"$here/down.sh" # whatever an earlier run left behind
mkdir -p "$run"/{log,pki,pid} "$node" /etc/cni/net.d
cd "$run"

{
  openssl genrsa -out pki/sa.key 2048
  openssl rsa -in pki/sa.key -pubout -out pki/sa.pub
  openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=local-ca -keyout pki/ca.key -out pki/ca.crt
  openssl req -newkey rsa:2048 -nodes -subj /CN=kube-apiserver -keyout pki/apiserver.key -out pki/apiserver.csr
  names=DNS:localhost,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,IP:127.0.0.1,IP:$cluster_ips.0.1,IP:$pods.1
  openssl x509 -req -in pki/apiserver.csr -CA pki/ca.crt -CAkey pki/ca.key -CAcreateserial -days 30 -out pki/apiserver.crt -extfile <(echo "subjectAltName=$names")
} 2> log/pki.log
touch tokens.csv
chmod 600 tokens.csv
user() { # user FILE NAME GROUP: a random token for NAME and a kubeconfig that holds it
  local token
  token=$(openssl rand -hex 16)
  echo "$token,$2,$2,$3" >> tokens.csv
  cat > "$1.kubeconfig" <<C
apiVersion: v1
kind: Config
clusters: [{name: local, cluster: {server: "https://127.0.0.1:6443", certificate-authority: $run/pki/ca.crt}}]
users: [{name: u, user: {token: $token}}]
contexts: [{name: local, context: {cluster: local, user: u}}]
current-context: local
C
}
user admin admin system:masters
user kubelet system:node:node-1 system:nodes
user controllers system:kube-controller-manager ""
user scheduler system:kube-scheduler ""
user proxy system:kube-proxy ""

ip link add finetune0 type bridge
ip addr add $pods.1/24 dev finetune0
ip link set finetune0 up
ip route replace $cluster_ips.0.0/16 dev finetune0 # kube-proxy rewrites these; without its rules nothing leaves the machine
sysctl -qw net.ipv4.ip_forward=1
cat > /etc/cni/net.d/10-finetune.conflist <<C
{"cniVersion": "0.4.0", "name": "finetune", "plugins": [
  {"type": "bridge", "bridge": "finetune0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "$pods.0/24", "rangeStart": "$pods.10"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
C
# restrict_oom_score_adj: without CAP_SYS_RESOURCE runc cannot lower oom_score_adj ("can't get final child's PID from pipe: EOF").
cat > containerd.toml <<C
version = 2
root = "$CLUSTER_HOME/containerd"
state = "$node/containerd"
[grpc]
  address = "$socket"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:local"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
C
start containerd containerd -c "$run/containerd.toml"
wait_for containerd "containerd" ctr -a "$socket" version
abandoned=$("${ctr[@]}" containers ls -q) # of a containerd that was killed; the next one must not have seen them
if [[ -n $abandoned ]]; then
  for id in $abandoned; do "${ctr[@]}" containers rm "$id" > /dev/null; done
  stop containerd
  start containerd containerd -c "$run/containerd.toml"
  wait_for containerd "containerd" ctr -a "$socket" version
fi
start etcd etcd --data-dir "$run/etcd" --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
  --listen-peer-urls http://127.0.0.1:2380 --unsafe-no-fsync
start apiserver kube-apiserver --etcd-servers=http://127.0.0.1:2379 --bind-address=0.0.0.0 --advertise-address=$pods.1 --secure-port=6443 \
  --tls-cert-file=pki/apiserver.crt --tls-private-key-file=pki/apiserver.key --client-ca-file=pki/ca.crt --service-cluster-ip-range=$cluster_ips.0.0/16 \
  --service-account-issuer=https://kubernetes.default.svc --service-account-key-file=pki/sa.pub --service-account-signing-key-file=pki/sa.key \
  --token-auth-file=tokens.csv --authorization-mode=Node,RBAC --allow-privileged=true --kubelet-preferred-address-types=InternalIP
for image in pause base; do "$here/load-image.sh" localhost/$image:local; done # while the API server starts
wait_for apiserver "API server" kubectl get --raw /readyz
start controllers kube-controller-manager --kubeconfig=controllers.kubeconfig --service-account-private-key-file=pki/sa.key --root-ca-file=pki/ca.crt \
  --use-service-account-credentials --leader-elect=false --cluster-signing-cert-file=pki/ca.crt --cluster-signing-key-file=pki/ca.key
start scheduler kube-scheduler --kubeconfig=scheduler.kubeconfig --leader-elect=false
# cgroup v1 works up to Kubernetes 1.34; disk and memory eviction is off so that a test never loses a pod to the host's state.
cat > kubelet.yaml <<C
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
clusterDNS: [$pods.1]
clusterDomain: cluster.local
cgroupDriver: cgroupfs
containerRuntimeEndpoint: unix://$socket
failSwapOn: false
evictionHard: {nodefs.available: "1%", imagefs.available: "1%", memory.available: 100Mi}
imageGCHighThresholdPercent: 100
enforceNodeAllocatable: []
serializeImagePulls: false
C
start kubelet kubelet --config=kubelet.yaml --kubeconfig=kubelet.kubeconfig --hostname-override=node-1 --node-ip=$pods.1 --root-dir="$run/kubelet" --cert-dir="$run/kubelet-pki"
start proxy kube-proxy --kubeconfig=proxy.kubeconfig --cluster-cidr=$pods.0/24 --proxy-mode=iptables --hostname-override=node-1
cat > Corefile <<C
cluster.local:53 {
  bind $pods.1
  errors
  health 127.0.0.1:8081
  kubernetes cluster.local {
    kubeconfig $KUBECONFIG
    pods insecure
  }
  cache 5
}
C
start coredns coredns -conf Corefile
wait_for kubelet "node" node_ready

sed "s#@VOLUMES@#$run/volumes#" "$here/local-path.yaml" | kubectl apply -f - > /dev/null
kubectl get cm -n local-path-storage local-path-config -o jsonpath='{.data.config\.json}' > local-path.json
start local-path local-path-provisioner start --config local-path.json --kubeconfig "$KUBECONFIG" --namespace local-path-storage \
  --configmap-name local-path-config --helper-image localhost/base:local

kubectl apply --server-side -f "$CLUSTER_HOME/kuberay-crds" > /dev/null # 0.9 MB each: client-side apply refuses them
# -use-kubernetes-proxy: as a host process KubeRay cannot resolve the head service's cluster name.
start kuberay ray-operator -kubeconfig "$KUBECONFIG" -enable-leader-election=false -metrics-addr :18080 -health-probe-bind-address :18082 -use-kubernetes-proxy
wait_for kuberay "KubeRay" kuberay_ready
echo "$KUBECONFIG"
