#!/usr/bin/env bash
# Fuzzes for ten minutes each:      tests/fuzz.sh
# only one, for an hour:            tests/fuzz.sh --seconds 3600 receiver
# so many inputs, always the same:  tests/fuzz.sh --runs 20000
#
# What it finds it leaves in fuzz/findings; copy it into fuzz/corpus/NAME once it is mended, then it is a test for ever.
# What is merely interesting goes into fuzz/corpus by --keep, as few files as possible.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/fuzz"
limit=-max_total_time=600 keep='' same=''
while [ $# -gt 0 ]; do
  case $1 in
    --seconds) limit=-max_total_time=$2 && shift 2 ;;
    --runs) limit=-runs=$2 same=1 && shift 2 ;;
    --keep) keep=1 && shift ;;
    -*) printf 'fuzz.sh: what is %s? There are --seconds N, --runs N, --keep and names\n' "$1" >&2 && exit 2 ;;
    *) break ;;
  esac
done
targets=${*:-$(sed -n 's/^    ("\([a-z]*\)", .*/\1/p' ../src/fuzz.rs)}

# What cargo-fuzz does, without it and with a stable compiler: count the edges, and show comparisons to libFuzzer.
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
  -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1"
target_dir=${CARGO_TARGET_DIR:-$PWD/../../target}/fuzz
host=$(rustc -vV | sed -n 's/^host: //p')
# With --target the flags are not for build scripts.
CARGO_TARGET_DIR=$target_dir cargo build --release --quiet --target "$host"
fuzzer=$target_dir/$host/release/carousel-fuzz

for name in $targets; do
  mkdir -p "corpus/$name" "$target_dir/corpus/$name" findings
  printf '=== %s\n' "$name"
  options=(-rss_limit_mb=2048 -timeout=20 -max_len=4096 -print_final_stats=1 "-artifact_prefix=findings/$name-")
  options+=("$limit")
  # What earlier runs found interesting would make it another run each time.
  corpora=("corpus/$name")
  if [ -n "$same" ]; then
    rm -rf "$target_dir/new" && mkdir "$target_dir/new"
    options+=(-seed=1) corpora=("$target_dir/new" "${corpora[@]}")
  else
    corpora=("$target_dir/corpus/$name" "${corpora[@]}")
  fi
  CAROUSEL_FUZZ=$name "$fuzzer" "${options[@]}" "${corpora[@]}" 2>"$target_dir/$name.log" || {
    tail -n 40 "$target_dir/$name.log" >&2
    printf 'fuzz.sh: %s failed; all of it is in %s\n' "$name" "$target_dir/$name.log" >&2
    exit 1
  }
  grep -E 'number_of_executed|peak_rss|DONE|Done' "$target_dir/$name.log" || true
  if [ -n "$keep" ]; then
    rm -rf "$target_dir/few" && mkdir "$target_dir/few"
    CAROUSEL_FUZZ=$name "$fuzzer" -merge=1 -max_len=4096 "$target_dir/few" "corpus/$name" "$target_dir/corpus/$name" 2>/dev/null
    rm -rf "corpus/$name" && cp -r "$target_dir/few" "corpus/$name"
    printf '%s: %s files\n' "$name" "$(find "corpus/$name" -type f | wc -l)"
  fi
done
rmdir findings 2>/dev/null || true
