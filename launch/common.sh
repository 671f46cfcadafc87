# Functions that the scripts of this folder share; sourcing this file changes to the repository's root.
# shellcheck shell=bash disable=SC2034  # the scripts read what is set here
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# refuse SENTENCE: prints it and exits, on a mistake of the user's.
refuse() {
  echo "error: $*" >&2
  exit 2
}

# help OPTIONS: prints the head of the script, without lines for shellcheck, and its options, one per line.
help() {
  sed -n '2,/^[^#]/{/^# shellcheck /d;s/^# \{0,1\}//p}' "$0"
  printf '\noptions:\n%s\n' "$1"
}

# read_options OPTIONS ARGUMENTS…: sets a variable for every --name=value, and $arguments to what follows --.
# OPTIONS has one line per option: --name=DEFAULT and its meaning.
read_options() {
  local options="$1
  --dry-run                          print the commands, and call nothing
  --help                             print this" names=() name option
  shift
  while read -r option _; do
    if [[ $option != --*=* ]]; then continue; fi
    name=${option%%=*} names+=("$name") name=${name#--}
    declare -g "${name//-/_}=${option#*=}"
  done <<<"$options"
  dry_run=no arguments=()
  while (($#)); do
    case $1 in
      --) arguments=("${@:2}") && return ;;
      --dry-run) dry_run=yes ;;
      --help) help "$options" && exit ;;
      *)
        [[ $1 == --*=* && " ${names[*]} " == *" ${1%%=*} "* ]] ||
          refuse "${1%%=*} is no option of $0, which has ${names[*]} (each with =VALUE; see --help);" \
            "arguments of the training go after --"
        name=${1%%=*} name=${name#--}
        declare -g "${name//-/_}=${1#*=}"
        ;;
    esac
    shift
  done
}

# split NAME: sets $more to the words of an option that holds several, quoted as in a shell.
split() {
  local words
  words=$(xargs -r -n 1 printf '%s\n' <<<"${!1}" 2>/dev/null) || refuse "--$1=${!1}: its quotes do not match"
  more=()
  [[ -z $words ]] || mapfile -t more <<<"$words"
}

# require NAME…: exits if one of these options has no value.
require() {
  local option
  for option; do [[ -n ${!option} ]] || refuse "$0 needs --${option//_/-}=…; see --help"; done
}

# listed NAME TEXT: returns whether one of the words of TEXT is NAME.
listed() { tr -s '[:space:]' '\n' <<<"$2" | grep -xF -- "$1" >/dev/null; }

# quoted COMMAND…: prints it as one would type it.
quoted() {
  local word words=()
  for word; do
    if [[ $word =~ ^[A-Za-z0-9_./:=,@%+~-]+$ ]]; then words+=("$word"); else words+=("${word@Q}"); fi
  done
  echo "${words[*]}"
}

# run COMMAND…: prints it, and runs it unless --dry-run is set.
run() {
  quoted "$@"
  [[ $dry_run == yes ]] || "$@"
}
