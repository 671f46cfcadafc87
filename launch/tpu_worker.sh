#!/usr/bin/env bash
# Run by launch/tpu.sh on each worker, in a checkout: mounts the bucket, installs, trains in the background.
#
#   launch/tpu_worker.sh BUCKET NAME ARGUMENTS…
#
# Costs nothing by itself. Safe to repeat: a running training is left alone. ~/train.log is its output; ~/status is its
# exit status once it has ended.
set -euo pipefail
bucket=$1 name=$2
shift 2
if [[ -e ~/train.lock ]] && ! flock -n ~/train.lock true; then exit 0; fi # it runs

if ! command -v gcsfuse >/dev/null; then
  curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /usr/share/keyrings/cloud.google.asc >/dev/null
  echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get update -qq
  sudo apt-get install -qq -y gcsfuse
fi
mkdir -p ~/bucket
mountpoint -q ~/bucket || gcsfuse --implicit-dirs --rename-dir-limit=100000 "$bucket" ~/bucket
if ! [[ -x ~/venv/bin/python ]]; then
  python3 -m pip install --quiet --user uv # the image's own Python may be older than 3.11
  python3 -m uv venv --quiet --seed --python=3.12 ~/venv
fi
~/venv/bin/pip install --quiet -e '.[tpu]'
rm -f ~/status
# shellcheck disable=SC2016  # the inner shell expands
nohup flock -n ~/train.lock bash -c '"$HOME/venv/bin/python" -m tsallis_rl.main --distributed "$@"; echo $? >"$HOME/status"' \
  train "--workdir=$HOME/bucket/runs/$name" "$@" >>~/train.log 2>&1 </dev/null &
