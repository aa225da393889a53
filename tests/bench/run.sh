#!/usr/bin/env bash
# All benchmarks:                            tests/bench/run.sh
# and keep tables and charts beside this:    tests/bench/run.sh --record
# One of them, with its own options:         tests/bench/run.sh peers --only late
# Only to see whether everything works:      tests/bench/run.sh --quick
#
# As root, on a machine that does nothing else. `tests/bench/run.sh peers --help` names the options of a benchmark.
set -euo pipefail
umask 022
exec </dev/null
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.."
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
if ! command -v cargo >/dev/null && [ -n "${HOME:-}" ]; then PATH=$HOME/.cargo/bin:$PATH; fi

all=$(sed -n '/^\[\[bench\]\]/,/^name/ s/^name = "\(.*\)"/\1/p' tests/Cargo.toml)
case ${1:--} in
  -*) names=$all ;;
  *)
    names=$1 && shift
    if ! grep -qxF -- "$names" <<<"$all"; then
      printf 'run.sh: no benchmark is called %s; there are: %s\n' "$names" "${all//$'\n'/ }" >&2
      exit 2
    fi
    ;;
esac

# Eight receivers have eight disks; here they share one, which would be what is measured. 4 GiB are enough.
free=$(df --output=avail -k /dev/shm 2>/dev/null | tail -n 1 || echo 0)
if [ -z "${TMPDIR:-}" ] && [ -w /dev/shm ] && [ "$free" -gt 4194304 ]; then export TMPDIR=/dev/shm; fi

# What is measured is what a user gets; the benchmarks themselves need no slow linking.
if [ -z "${CAROUSEL_BIN_DIR:-}" ]; then
  cargo build --release
  CAROUSEL_BIN_DIR=$(realpath "${CARGO_TARGET_DIR:-target}/release")
  export CAROUSEL_BIN_DIR
fi
for name in $names; do
  printf '\n=== %s\n' "$name"
  if [ "$name" = peers ]; then tests/bench/get-peers.sh; fi
  cargo bench --profile lab -p carousel-tests --bench "$name" -- "$@"
done
