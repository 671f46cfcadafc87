#!/usr/bin/env bash
# Sweeps with any launcher of this folder: each cell of the grid of `python -m tsallis_rl.sweep` gets a job or slice.
#
#   launch/sweep.sh --q=0,.25,.5,.75,1 --estimators=garl,paft --seeds=3 launch/slurm.sh --name=hops --gpus=8
#   launch/sweep.sh --grid=configs/grids/table1.py launch/slurm.sh --name=table1 --gpus=8
#   launch/sweep.sh --q=.5,.75 --seeds=1 --parallel=4 launch/tpu.sh up --project=P --zone=Z --bucket=B --name=hops
#
# Costs what the launcher says, times the cells. Needs what the launcher needs, and the package here, to list the cells.
# The flags of tsallis_rl.sweep go before the launcher, --config=… and --config.section.field=… included. A cell is named
# NAME-CELL, so that its run has a folder of its own. --parallel=N runs N launches at a time, for launchers that wait for
# their slice. The same command again continues all cells; --dry-run, among the launcher's options, prints what would be
# done.
source "$(dirname "$0")/common.sh"
[[ ${1:-} == --help ]] && help "\
  --parallel=1                       launches at a time
  --grid=, --config=, --q=, …        flags of tsallis_rl.sweep, whose --help lists them
  --dry-run                          after the launcher: print what would be done
  --help                             print this" && exit
flags=() parallel=1
while [[ ${1:-} == --* ]]; do
  if [[ $1 == --parallel=* ]]; then parallel=${1#*=}; else flags+=("$1"); fi
  shift
done
(($#)) || refuse "$0 needs a launcher with its options after the flags of the sweep; see --help"
[[ " $* " == *" --name="* ]] || refuse "the launcher needs --name=…, which tells the runs of the sweep apart"
[[ " $* " != *" -- "* ]] || refuse "flags of the training go before the launcher of a sweep, not after --; see --help"

cells=$("${PYTHON:-python}" -m tsallis_rl.sweep "${flags[@]}" --dry-run)
while read -r line; do
  eval "words=($line)"                        # quoted as a shell reads it
  [[ ${words[-1]} == --prepare ]] && continue # each job prepares for itself what it needs
  cell=${words[-1]##*/}                       # of --workdir=FOLDER/CELL; the launcher has a folder of its own
  launch=()
  for word; do
    if [[ $word == --name=* ]]; then word+=-${cell//[._]/-}; fi
    launch+=("$word")
  done
  quoted "${launch[@]}" -- "${words[@]:3:${#words[@]}-4}"
done <<<"$cells" | xargs -d '\n' -P "$parallel" -I{} bash -c '{} || exit 255' ||
  refuse "a launch failed; the same command continues with what is left"
