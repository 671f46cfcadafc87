#!/usr/bin/env bash
# Trains on whatever cloud SkyPilot finds cheapest, as a managed job that restarts after a preemption.
#
#   launch/sky.sh --name=hops --bucket=s3://B --gpus=H100:8 --nodes=1 -- --config=configs/hops.py:q=0.75
#   sky jobs queue; sky jobs logs --name hops; sky jobs cancel --name hops
#
# Costs what the cloud charges for --nodes × --gpus while the job lives, and for SkyPilot's small controller. Needs
# `pip install skypilot` with a cloud that `sky check` accepts, and a bucket (s3://, gs://), which will hold the run in
# runs/NAME. Uses spot machines unless --spot=no. While a job of this name lives, nothing more is launched.
# shellcheck disable=SC2154  # read_options sets the options
source "$(dirname "$0")/common.sh"
read_options "\
  --name=                            names the job, and the run's folder runs/NAME; needed
  --bucket=                          s3:// or gs://, holds the run; needed
  --gpus=H100:8                      type and number, of each host
  --nodes=1                          hosts
  --spot=yes                         yes: machines that are cheaper and can be taken away; no
  --sky=                             further options of sky jobs launch, as in --sky='--region=us-east-1'" "$@"
require name bucket
split sky
living=
if [[ $dry_run == no ]]; then living=$(sky jobs queue --skip-finished); fi
if listed "$name" "$living"; then
  echo "a job named $name lives; nothing to do"
  exit
fi
spots=--use-spot
if [[ $spot == no ]]; then spots=--no-use-spot; fi
run sky jobs launch --yes --detach-run "--name=$name" "--num-nodes=$nodes" "--gpus=$gpus" "$spots" "${more[@]}" \
  --env "BUCKET=$bucket" --env "ARGUMENTS=$(quoted "--workdir=/bucket/runs/$name" "${arguments[@]}")" launch/sky.yaml
