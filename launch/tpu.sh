#!/usr/bin/env bash
# Trains on a Cloud TPU VM or a pod slice: the program runs on every worker, the first one writes the run.
#
#   launch/tpu.sh up     --project=P --zone=Z --bucket=B --name=hops --type=v5litepod-16 -- --config=configs/hops.py:q=0.5
#   launch/tpu.sh watch  --project=P --zone=Z --name=hops     the first worker's log, until Ctrl-C
#   launch/tpu.sh delete --project=P --zone=Z --name=hops     ends the bill; the run stays in the bucket
#
# Costs what Google charges for the slice, from `up` to `delete`, whether it trains or not; --spot=yes is cheaper and can
# be taken away. Needs gcloud, logged in; quota for the slice; a bucket near it, which will hold the run in runs/NAME, and
# which each worker mounts with gcsfuse. Workers run the last commit, copied there through the bucket. `up` again
# continues: it requests the slice unless it exists, replaces a preempted one, and starts the training unless it runs.
# --wait=yes repeats this every --seconds until the training ends, and returns its exit status.
# shellcheck disable=SC2154  # read_options sets the options
source "$(dirname "$0")/common.sh"
verb=${1:-}
[[ $verb =~ ^(up|watch|delete|--help)$ ]] || refuse "$0 needs up, watch or delete as its first word; see --help"
[[ $verb == --help ]] || shift
read_options "\
  --name=                            names the slice, and the run's folder runs/NAME; needed
  --project=                         of Google Cloud; needed
  --zone=                            of the slice; needed
  --bucket=                          holds the run; needed by up
  --type=v5litepod-16                accelerator type of the slice
  --image=v2-alpha-tpuv5-lite        runtime version of its machines
  --spot=no                          yes: cheaper, and can be taken away; no
  --wait=no                          yes: stay until the training ends, replace what is preempted; no
  --seconds=60                       between two checks of the slice
  --create=                          further options of queued-resources create, as in --create='--reserved'" "$@"
require project zone name
split create
place=("$name" "--project=$project" "--zone=$zone")

state() { gcloud compute tpus tpu-vm describe "${place[@]}" '--format=value(state)' 2>/dev/null || true; }
request() { gcloud compute tpus queued-resources describe "${place[@]}" '--format=value(state.state)' 2>/dev/null || true; }
on_worker() { run gcloud compute tpus tpu-vm ssh "${place[@]}" "--worker=$1" "--command=$2"; }
remove() { run gcloud compute tpus queued-resources delete "${place[@]}" --force --quiet; }

ask() {
  local options=("--node-id=$name" "--accelerator-type=$type" "--runtime-version=$image")
  if [[ $spot == yes ]]; then options+=(--spot); fi
  run gcloud compute tpus queued-resources create "${place[@]}" "${options[@]}" "${more[@]}"
}

ensure_slice() {
  if [[ $dry_run == yes ]]; then ask && return; fi
  while true; do
    case $(state)/$(request) in
      READY/*) return ;;
      PREEMPTED/* | TERMINATED/* | */SUSPENDED) remove && ask ;;
      */FAILED) refuse "the request $name failed: see gcloud compute tpus queued-resources describe ${place[*]}" ;;
      /) ask ;;
    esac
    sleep "$seconds"
  done
}

start() {
  local command="set -e; mkdir -p ~/work; cd ~/work; gcloud storage cat gs://$bucket/source/$name.tar.gz | tar xz"
  command+="; exec bash launch/tpu_worker.sh $bucket $name $(quoted "${arguments[@]}")"
  run git archive --format=tar.gz "--output=${TMPDIR:-/tmp}/$name.tar.gz" HEAD &&
    run gcloud storage cp "${TMPDIR:-/tmp}/$name.tar.gz" "gs://$bucket/source/$name.tar.gz" &&
    on_worker all "$command"
}

case $verb in
  up)
    require bucket
    while true; do
      ensure_slice
      start || [[ $wait == yes ]] || exit 1 # preempted meanwhile: the next round replaces it
      [[ $wait == yes && $dry_run == no ]] || exit 0
      while [[ $(state) == READY ]]; do
        status=$(gcloud compute tpus tpu-vm ssh "${place[@]}" --worker=0 '--command=cat ~/status' 2>/dev/null || true)
        if [[ -n $status ]]; then exit "$status"; fi
        sleep "$seconds"
      done
    done
    ;;
  watch) on_worker 0 'tail -n 100 -F ~/train.log' ;;
  delete) remove ;;
esac
