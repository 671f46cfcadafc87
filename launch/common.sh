# What the scripts of this folder share; they source it, and then stand in the repository's root.
# shellcheck shell=bash disable=SC2034  # the scripts read what is set here
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# refuse SENTENCE: a mistake of the user's.
refuse() {
  echo "error: $*" >&2
  exit 2
}

# read_options "NAME=DEFAULT …" ARGUMENTS…: sets a variable for every --name=value; $arguments is what stands after --.
read_options() {
  local known=" ${1//$'\n'/ } " pair name
  shift
  for pair in $known; do declare -g "${pair%%=*}=${pair#*=}"; done
  dry_run=no arguments=()
  while (($#)); do
    name=${1%%=*} name=${name#--} name=${name//-/_}
    case $1 in
      --) arguments=("${@:2}") && return ;;
      --dry-run) dry_run=yes ;;
      --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit ;;
      *)
        [[ $1 == --*=* && $known == *" $name="* ]] ||
          refuse "${1%%=*} is no option of $0 (see --help); arguments of the training stand after --"
        declare -g "$name=${1#*=}"
        ;;
    esac
    shift
  done
}

# require NAME…: exits while one of these options has no value.
require() {
  local option
  for option; do [[ -n ${!option} ]] || refuse "$0 needs --${option//_/-}=…; see --help"; done
}

# listed NAME TEXT: whether one of the words of TEXT is NAME.
listed() { tr -s '[:space:]' '\n' <<<"$2" | grep -xF -- "$1" >/dev/null; }

# quoted COMMAND…: as one would type it.
quoted() {
  local word words=()
  for word; do
    if [[ $word =~ ^[A-Za-z0-9_./:=,@%+~-]+$ ]]; then words+=("$word"); else words+=("${word@Q}"); fi
  done
  echo "${words[*]}"
}

# run COMMAND…: prints it; with --dry-run, that is all.
run() {
  quoted "$@"
  [[ $dry_run == yes ]] || "$@"
}
