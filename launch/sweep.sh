#!/usr/bin/env bash
# A sweep over q, each value a job or a slice of its own, by any launcher of this folder.
#
#   launch/sweep.sh --qs=0,0.25,0.5,0.75,1 launch/slurm.sh --name=hops --gpus=8 -- --config=configs/hops.py
#   launch/sweep.sh --qs=0.5,0.75 launch/tpu.sh up --project=P --zone=Z --bucket=B --name=hops -- --config=configs/hops.py
#
# Costs what the launcher says, times the number of values. Each is named NAME-q…, so that the run lies in a folder of its
# own; the same command again goes on with all of them. --dry-run, among the launcher's options, prints what would be done.
source "$(dirname "$0")/common.sh"
[[ ${1:-} == --help ]] && read_options "" --help
[[ ${1:-} == --qs=* && $# -gt 1 ]] || refuse "$0 needs --qs=Q,Q,… and then a launcher with its arguments; see --help"
IFS=, read -ra qs <<<"${1#--qs=}"
shift
for q in "${qs[@]}"; do
  suffix=-q${q//./-}
  command=()
  named=no
  for word; do
    if [[ $word == --name=* ]]; then named=yes word+=$suffix; fi
    command+=("$word")
  done
  [[ $named == yes ]] || refuse "the launcher needs --name=…, which tells the runs of the sweep apart"
  "${command[@]}" "--config.estimator.q=$q"
done
