#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster, as a JobSet that restarts and continues when a slice is preempted.
#
#   launch/gke.sh --project=P --zone=Z --bucket=B --cluster=C --image=I --name=hops \
#     --accelerator=tpu-v5-lite-podslice --topology=4x4 --hosts=4 --chips=4 -- --config=configs/hops.py:q=0.75
#   kubectl logs --follow jobset.sigs.k8s.io/jobset-name=hops …; kubectl delete jobset hops
#
# Costs what the cluster's nodes cost. Needs kubectl; a cluster with the JobSet controller, the Cloud Storage FUSE driver
# and a node pool of that accelerator and topology (--hosts machines of --chips chips); an image that holds this checkout,
# with `pip install -e '.[tpu]'` done; a bucket that the default service account may write, which will hold the run in
# runs/NAME. Safe to repeat: what exists stays. --xpk=TPU-TYPE starts it through xpk instead, which makes its own JobSet.
# shellcheck disable=SC2154  # read_options sets the options
source "$(dirname "$0")/common.sh"
read_options "\
  --name=                            names the JobSet, and the run's folder runs/NAME; needed
  --project=                         of Google Cloud; needed
  --zone=                            of the cluster; needed
  --cluster=                         its name; needed
  --bucket=                          holds the run; needed
  --image=                           container image with this checkout installed; needed
  --accelerator=tpu-v5-lite-podslice of the node pool
  --topology=4x4                     of the node pool
  --hosts=4                          machines of a slice
  --chips=4                          of each machine
  --restarts=100                     preemptions after which the job fails
  --xpk=                             a TPU type: start it through xpk
  --create=                          further options of xpk workload create or kubectl apply" "$@"
require project zone bucket cluster image name
split create
command=$(quoted python -m tsallis_rl.main --distributed "--workdir=/bucket/runs/$name" "${arguments[@]}")

if [[ -n $xpk ]]; then
  place=("--project=$project" "--zone=$zone" "--cluster=$cluster")
  there=
  if [[ $dry_run == no ]]; then there=$(xpk workload list "${place[@]}"); fi
  if listed "$name" "$there"; then
    echo "a workload named $name is there; nothing to do"
    exit
  fi
  run xpk storage attach "$name-bucket" "${place[@]}" --type=gcsfuse "--bucket=$bucket" --mount-point=/bucket \
    --readonly=false --auto-mount=true --size=1
  run xpk workload create "${place[@]}" "--workload=$name" "--tpu-type=$xpk" "--docker-image=$image" \
    "--max-restarts=$restarts" "--command=$command" "${more[@]}"
  exit
fi
run gcloud container clusters get-credentials "$cluster" "--project=$project" "--location=$zone"
export name bucket image accelerator topology hosts chips restarts
export command=${command//\'/\'\'} # inside a quoted string of YAML
file=$(mktemp --suffix=.yaml)
trap 'rm -f "$file"' EXIT
envsubst <launch/jobset.yaml >"$file"
if [[ $dry_run == yes ]]; then
  echo "$(quoted kubectl apply --filename=- "${more[@]}") <<END"
  cat "$file"
  echo END
else
  kubectl apply "--filename=$file" "${more[@]}"
fi
