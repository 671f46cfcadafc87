#!/usr/bin/env bash
# A pod on this machine: processes with their own virtual CPU devices train together, as the workers of a real pod do.
#
#   launch/local_pod.sh --processes=2 --devices=2 -- --config=configs/hops.py:q=0.75 --workdir=runs/pod
#
# Costs nothing, needs a CPU. The arguments of tsallis_rl.main go after --. The first process prints here, the others into
# --logs. Ctrl-C or SIGTERM stops all of them; the same command continues the run.
# shellcheck disable=SC2154  # read_options sets the options
source "$(dirname "$0")/common.sh"
read_options "\
  --processes=2                      processes that train together
  --devices=2                        virtual CPU devices of each
  --port=$((20000 + $$ % 10000))                       port at which they meet; by default derived from the process id
  --logs=runs/pod-logs               folder for the output of all processes but the first" "$@"

[[ $dry_run == yes ]] || mkdir -p "$logs"
set -m # a process group each, so that Ctrl-C reaches them once: through the trap
workers=()
for ((i = 0; i < processes; i++)); do
  command=(
    env JAX_PLATFORMS=cpu "JAX_NUM_CPU_DEVICES=$devices" JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo
    "JAX_COORDINATOR_ADDRESS=127.0.0.1:$port" "JAX_NUM_PROCESSES=$processes" "JAX_PROCESS_ID=$i"
    "${PYTHON:-python}" -m tsallis_rl.main --distributed "${arguments[@]}"
  )
  quoted "${command[@]}"
  if [[ $dry_run == yes ]]; then continue; fi
  if ((i)); then "${command[@]}" >"$logs/$i.log" 2>&1 & else "${command[@]}" & fi
  workers+=($!)
done

stop() { kill -TERM "${workers[@]}" 2>/dev/null || true; }
trap stop INT TERM
status=0
for worker in "${workers[@]}"; do
  while kill -0 "$worker" 2>/dev/null; do # a trapped signal ends wait early
    wait "$worker" && code=0 || code=$?
  done
  wait "$worker" && code=0 || code=$?
  if ((code && !status)); then
    status=$code
    stop # the others would wait for it
  fi
done
exit "$status"
