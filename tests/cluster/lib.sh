# Names and helpers that the scripts of this folder share; sourced, not run.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
export CLUSTER_HOME=${CLUSTER_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/finetune-cluster}
bin=$CLUSTER_HOME/bin
run=$CLUSTER_HOME/run
node=/run/finetune-cluster
socket=$node/containerd.sock
tasks=$node/containerd/io.containerd.runtime.v2.task/k8s.io
ctr=(ctr -a "$socket" -n k8s.io)
services=(containerd etcd apiserver controllers scheduler kubelet proxy coredns local-path kuberay)
export PATH=$bin:$PATH:/usr/local/go/bin:/usr/sbin:/sbin

have() { command -v "$1" > /dev/null 2>&1; }
say() { echo "cluster: $*" >&2; }

running() { # running NAME: set pid; true if that very process still runs (an id can be given to another process later)
  local began
  [[ -e $run/pid/$1 ]] && read -r pid began < "$run/pid/$1" && [[ $(awk '$3 != "Z" {print $22}' "/proc/$pid/stat" 2> /dev/null) == "$began" ]]
}

start() { # start NAME COMMAND…: in the background; pid/NAME holds its id and start time, so that no other process is ever ended
  local name=$1
  shift
  # 9 is the lock of `cluster`, which a process that stays must not keep.
  setsid nohup "$@" > "$run/log/$name.log" 2>&1 < /dev/null 9>&- &
  echo "$! $(cut -d' ' -f22 "/proc/$!/stat")" > "$run/pid/$name"
}

stop() { # stop NAME: end that process and wait until it is gone, so that its port is free again
  local pid _
  running "$1" || return 0
  kill "$pid" 2> /dev/null || true
  for _ in $(seq 50); do
    running "$1" || return 0
    sleep 0.1
  done
  kill -9 "$pid" 2> /dev/null || true
}

wait_for() { # wait_for LOG WHAT COMMAND…: up to a minute; then the end of that log says why not
  local log=$1 what=$2 _
  shift 2
  for _ in $(seq 200); do
    "$@" > /dev/null 2>&1 && return
    sleep 0.3
  done
  say "timed out: $what; the end of $run/log/$log.log:"
  tail -n 5 "$run/log/$log.log" >&2 || true
  exit 1
}
