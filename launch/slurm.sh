#!/usr/bin/env bash
# Trains on the GPU hosts of a Slurm cluster: a task per GPU, joined by jax from Slurm's own variables.
#
#   launch/slurm.sh --name=hops --nodes=2 --gpus=8 --account=A -- --config=configs/hops.py:q=0.75
#   squeue --me; tail -F runs/hops.log; scancel --name=hops
#
# Costs what your cluster charges for --nodes × --gpus. Needs sbatch, and this checkout in a file system that all hosts
# share, with `pip install -e '.[gpu]'` done in the active environment. A job gets a signal 120 seconds before it is
# preempted or times out, saves, and goes back into the queue; the run is in runs/NAME. While a job of this name is queued
# or runs, nothing more is submitted.
# shellcheck disable=SC2154  # read_options sets the options
source "$(dirname "$0")/common.sh"
read_options "\
  --name=                            names the job, and the run's folder runs/NAME; needed
  --nodes=1                          hosts
  --gpus=8                           of each host; a task runs on each
  --cpus=8                           cores of each task
  --time=24:00:00                    limit after which the job goes back into the queue
  --partition=                       by default the cluster's
  --account=                         by default yours
  --sbatch=                          further options of sbatch, as in --sbatch='--qos=high --mem=0'" "$@"
require name
split sbatch
queued=
if [[ $dry_run == no ]]; then queued=$(squeue --me --noheader "--name=$name"); fi
if [[ -n $queued ]]; then
  echo "a job named $name is queued or runs; nothing to do"
  exit
fi
[[ $dry_run == yes ]] || mkdir -p runs
options=("--job-name=$name" "--nodes=$nodes" "--ntasks-per-node=$gpus" "--gpus-per-node=$gpus"
  "--cpus-per-task=$cpus" "--time=$time"
  --requeue --open-mode=append --signal=B:TERM@120 "--output=runs/$name.log")
if [[ -n $partition ]]; then options+=("--partition=$partition"); fi
if [[ -n $account ]]; then options+=("--account=$account"); fi
run sbatch "${options[@]}" "${more[@]}" launch/slurm_job.sh "${PYTHON:-python}" "--workdir=runs/$name" "${arguments[@]}"
