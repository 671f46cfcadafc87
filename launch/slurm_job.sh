#!/usr/bin/env bash
# Submitted by launch/slurm.sh: runs the program in every task; on SIGTERM it saves, and the job goes back into the queue.
#
#   launch/slurm_job.sh PYTHON ARGUMENTS…
#
# Costs what launch/slurm.sh says. Needs to be started by sbatch.
python=$1
shift
trap 'stopped=yes; kill -TERM $!' TERM
# srun takes the cores of a task from its own options alone, not from sbatch's.
srun --kill-on-bad-exit=1 ${SLURM_CPUS_PER_TASK:+"--cpus-per-task=$SLURM_CPUS_PER_TASK"} "$python" -m tsallis_rl.main --distributed "$@" &
step=$!
wait $step
status=$?
if [[ -n ${stopped:-} ]]; then
  wait $step
  status=$?
  if ((status == 143)); then scontrol requeue "$SLURM_JOB_ID"; fi
fi
exit $status
