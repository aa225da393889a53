#!/usr/bin/env bash
# All tests, as CI runs them:   tests/run.sh
# and keep what they measured:  tests/run.sh --record
# Only those with a name:       tests/run.sh late_join
# and keep its lab to look at:  tests/run.sh --keep late_join_at_loss
#
# As root on Debian or Ubuntu it installs the tools it misses. Without root it runs what can be run, and names
# every test that was skipped and why. With CI=true a skipped test is a failed test.
set -euo pipefail
umask 022                 # an ordinary user, too, must be able to run the built tests
exec </dev/null           # nothing in here asks anybody anything
script=$(readlink -f "${BASH_SOURCE[0]}")
cd "$(dirname "$script")/.."
unset CLIPPY_CONF_DIR     # carousel-proto/clippy.toml must be found by its place

ci=${CI:-}
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

say() { printf '%s\n' "$*"; }
complain() { printf '\n!! %s\n\n' "$*" >&2; }

# --- one end for all ----------------------------------------------------------------------------------------------

# All that follows runs in a process group of its own, that of `timeout`, which passes on the signal it gets and
# kills 10 s later what did not mind it. So an interrupted run ends whole, whether its terminal sent the signal or
# somebody who knows this process only. The shell that stays here removes the run's folder when they are gone.
if [ -z "${CAROUSEL_RUN:-}" ]; then
  work=$(mktemp -d)
  run=''
  finish() {
    if [ -n "$run" ]; then kill -KILL -- "-$run" 2>/dev/null || true; fi
    # What was just killed may still be writing.
    for _ in 1 2 3 4 5; do rm -rf "$work" && break || sleep 1; done
  }
  trap finish EXIT
  signalled=''
  trap 'signalled=1; if [ -n "$run" ]; then kill -TERM "$run" 2>/dev/null || true; fi' HUP INT TERM
  limit=0
  if [ "$ci" = true ]; then limit=90m; fi # nobody watches CI: a test that hangs must not hang it
  CAROUSEL_RUN=$work timeout -k 10 "$limit" "$BASH" "$script" "$@" &
  run=$!
  if [ -n "$signalled" ]; then signalled='' && kill -TERM "$run"; fi # it came while $run had no number yet
  while code=0; wait "$run" || code=$?; [ -n "$signalled" ]; do signalled=''; done
  exit "$code"
fi
work=$CAROUSEL_RUN
unset CAROUSEL_RUN

keep='' record=''
case ${1:-} in
  --keep) keep=1 && shift ;;
  --record) record=1 && shift ;;
esac
if [ -n "$keep" ] && [ $# -eq 0 ]; then complain "--keep wants the name of a test" && exit 2; fi
if [ -n "$record" ] && [ $# -gt 0 ]; then complain "--record is for the whole run, without a name" && exit 2; fi

# --- steps and their times --------------------------------------------------------------------------------------

times=()
now_at=start
step() { # NAME COMMAND…: runs the command, which ends the script if it fails
  now_at=$1
  printf '\n=== %s\n' "$1"
  local began=$SECONDS
  shift
  "$@"
  times+=("$(printf '%5d s  %s' $((SECONDS - began)) "$now_at")")
}

finish() {
  local code=$?
  if [ "$code" -gt 128 ]; then
    complain "interrupted in: $now_at"
  elif [ "$code" -ne 0 ]; then
    complain "failed in: $now_at (exit code $code)"
  fi
}
trap finish EXIT
trap 'exit 143' TERM

# --- tools --------------------------------------------------------------------------------------------------------

have() { command -v "$1" >/dev/null 2>&1; }

# Program and the package that brings it.
tools="ip:iproute2 ss:iproute2 tc:iproute2 bridge:iproute2 nft:nftables ethtool:ethtool strace:strace
       minisign:minisign faketime:faketime mkfs.ext2:e2fsprogs unshare:util-linux nsenter:util-linux script:bsdutils
       promtool:prometheus prometheus-node-exporter:prometheus-node-exporter
       setsid:util-linux setpriv:util-linux mount:mount timeout:coreutils xargs:findutils cc:build-essential
       rauc:rauc dbus-daemon:dbus-daemon mksquashfs:squashfs-tools swupdate:swupdate cpio:cpio openssl:openssl
       losetup:mount knotd:knot kzonecheck:knot-dnssecutils named-checkzone:bind9-utils nsd-checkzone:nsd
       unbound:unbound dnsmasq:dnsmasq-base systemd-analyze:systemd dpkg-shlibdeps:dpkg-dev man:man-db mandoc:mandoc
       zsh:zsh fish:fish"

missing_packages() {
  local tool
  for tool in $tools; do
    have "${tool%%:*}" || echo "${tool##*:}"
  done | sort -u
}

# Installing a nameserver must not start one: the tests start their own, and this may be somebody's machine.
quietly() {
  local policy=/usr/sbin/policy-rc.d code=0
  if [ -e "$policy" ]; then "$@" && return 0 || return; fi
  printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy"
  "$@" || code=$?
  rm -f "$policy"
  return "$code"
}

# What comes from the network may not come at once, and CI runs only once: there it gets some more attempts.
again() { # COMMAND…
  local pause
  if [ "$ci" = true ]; then
    for pause in 10 30 60; do
      "$@" && return
      complain "trying again in $pause s: $*"
      sleep "$pause"
    done
  fi
  "$@"
}

# Its option lets it wait for another dpkg, as there is one on a machine that has just started; for another update of
# the lists nothing makes it wait. An update that fails may leave lists that do.
apt_install() { # PACKAGE…
  local apt=(apt-get -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3)
  apt+=(-o Acquire::http::Timeout=30 -o Acquire::https::Timeout=30)
  "${apt[@]}" update -qq || true
  quietly "${apt[@]}" install -y -qq --no-install-recommends "$@"
}

install_tools() {
  local missing
  missing=$(missing_packages | tr '\n' ' ')
  if [ -z "$missing" ]; then
    say "all there"
  elif [ "$(id -u)" -ne 0 ]; then
    complain "missing, and only root can install it: ${missing}- tests that need it are skipped"
  elif ! have apt-get; then
    complain "missing, and there is no apt-get: install ${missing}by hand - tests that need it are skipped"
  else
    say "installing: $missing"
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086 # a list of words
    again apt_install $missing >"$work/apt" 2>&1 ||
      { cat "$work/apt" >&2 && complain "apt-get failed" && [ "$ci" != true ]; }
  fi
}

# Finds cargo, and gives it a home: HOME may be anything, or nothing.
find_cargo() {
  if ! have cargo && [ -n "${HOME:-}" ]; then PATH=$HOME/.cargo/bin:$PATH; fi
  if ! have cargo; then
    complain "cargo is missing: install Rust 1.89 or newer, see https://www.rust-lang.org/tools/install"
    return 1
  fi
  local rust_home
  rust_home=$(dirname "$(dirname "$(dirname "$(command -v cargo)")")") # of .cargo/bin/cargo
  if [ -z "${RUSTUP_HOME:-}" ] && ! [ -d "${HOME:-/nowhere}/.rustup" ] && [ -d "$rust_home/.rustup" ]; then
    export RUSTUP_HOME=$rust_home/.rustup
  fi
  if [ -z "${CARGO_HOME:-}" ] && ! [ -w "${HOME:-/nowhere}" ]; then
    export CARGO_HOME=$rust_home/.cargo
    [ -w "$CARGO_HOME" ] || CARGO_HOME=$PWD/target/cargo-home
  fi
  local tool
  for tool in fmt clippy; do
    if ! cargo "$tool" --version >/dev/null 2>&1; then
      complain "cargo $tool is missing: run \`rustup component add rustfmt clippy\`"
      return 1
    fi
  done
  cargo --version
}

# Real routers, for the tests that are about multicast routing.
get_routers() {
  again tests/get-pim6d.sh "${CARGO_TARGET_DIR:-target}/lab-tools/frr" ||
    { complain "no pim6d - tests that need routers are skipped" && [ "$ci" != true ]; }
}

# Debian 12 has no systemd-sysupdate.
get_sysupdate() {
  again tests/get-sysupdate.sh "${CARGO_TARGET_DIR:-target}/lab-tools/sysupdate" ||
    { complain "no systemd-sysupdate - the test of its recipe is skipped" && [ "$ci" != true ]; }
}

# For the test of the packages, which needs root anyway. Built without optimisation: half a minute on two cores.
get_packager() {
  local dir=${CARGO_TARGET_DIR:-target}/lab-tools/cargo-deb
  if [ "$(id -u)" -ne 0 ] || ! have dpkg-deb; then say "no use for it here" && return; fi
  if [ -x "$dir/bin/cargo-deb" ] || have cargo-deb; then say "all there" && return; fi
  again env CARGO_TARGET_DIR="$work/cargo-deb" CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=false \
    cargo install --quiet --locked --no-default-features --root "$dir" --version 3.8.0 cargo-deb ||
    { complain "no cargo-deb - the test of the packages is skipped" && [ "$ci" != true ]; }
  rm -rf "$work/cargo-deb"
}

# One test starts itself again as the user nobody, so root's build folder must not be behind a closed door.
open_doors() {
  [ "$(id -u)" -eq 0 ] && have setpriv || return 0
  local nobody=(setpriv --reuid=65534 --regid=65534 --clear-groups --)
  if ! "${nobody[@]}" test -w "${TMPDIR:-/tmp}"; then export TMPDIR=/tmp; fi
  mkdir -p "${CARGO_TARGET_DIR:-target}"
  if ! "${nobody[@]}" test -x "${CARGO_TARGET_DIR:-target}"; then
    chmod 755 "$work"
    export CARGO_TARGET_DIR=$work/target
    say "other users cannot enter $PWD: building in a temporary folder instead"
  fi
}

# --- checks -------------------------------------------------------------------------------------------------------

locked=()
if [ "$ci" = true ]; then locked=(--locked); fi

# carousel-proto's clippy.toml forbids it clocks, sockets, files, threads and entropy; clippy above obeyed it.
# Here: that the list bites, and that nobody talked clippy out of it.
purity() {
  mkdir -p "$work/purity/src"
  cp carousel-proto/clippy.toml "$work/purity/"
  printf '%s\n' '[package]' 'name = "impure"' 'edition = "2024"' '[workspace]' >"$work/purity/Cargo.toml"
  cat >"$work/purity/src/lib.rs" <<'RUST'
pub fn clock() -> std::time::Instant { std::time::Instant::now() }
pub fn socket() -> std::io::Result<std::net::UdpSocket> { std::net::UdpSocket::bind("[::1]:0") }
pub fn file() -> std::io::Result<std::fs::File> { std::fs::File::open("x") }
pub fn thread() { std::thread::spawn(|| ()); }
pub fn entropy() -> usize { std::collections::HashMap::<u8, u8>::new().len() }
RUST
  if CARGO_TARGET_DIR=$work/purity/target cargo clippy --offline --quiet \
    --manifest-path "$work/purity/Cargo.toml" -- -D warnings >"$work/purity/said" 2>&1; then
    complain "clippy accepts a clock, a socket, a file, a thread and entropy: carousel-proto/clippy.toml does not bite"
    return 1
  fi
  local name
  for name in time::Instant net::UdpSocket fs::File thread::spawn collections::HashMap; do
    if ! grep -q "disallowed .*std::$name" "$work/purity/said"; then
      cat "$work/purity/said" >&2
      complain "carousel-proto/clippy.toml does not forbid std::$name"
      return 1
    fi
  done
  if grep -rnE 'clippy::(all|style|disallowed)' carousel-proto/src; then
    complain "carousel-proto must not switch its own purity check off"
    return 1
  fi
  say "clock, socket, file, thread and entropy are refused"
}

deploy_files() {
  local isolated=(unshare -n)
  if [ "$(id -u)" -ne 0 ]; then isolated=(unshare -Urn); fi
  if have nft && "${isolated[@]}" true 2>/dev/null; then
    "${isolated[@]}" nft -c -f deploy/nftables-closed-inbound.nft
    say "firewall rules: understood by nft"
  else
    say "firewall rules: not checked, nft or namespaces are missing"
  fi
  if have systemd-analyze; then
    # systemd wants the programs to be there; ours are not installed.
    local unit
    for unit in deploy/*.service; do
      sed "s|/usr/bin/carousel-[a-z]*|$(command -v true)|" "$unit" >"$work/${unit##*/}"
      # verify exits with 0 whatever unknown settings it finds, so its words count too.
      systemd-analyze verify --man=no "$work/${unit##*/}" >"$work/unit" 2>&1 || cat "$work/unit"
      if grep -F "${unit##*/}" "$work/unit"; then
        complain "systemd does not like $unit"
        return 1
      fi
    done
    say "systemd units: understood by systemd"
  else
    say "systemd units: not checked, systemd-analyze is missing"
  fi
}

dependencies() {
  if cargo deny --version >/dev/null 2>&1; then
    cargo deny check
  else
    complain "cargo-deny is not installed: licences, advisories and sources of the dependencies were NOT checked"
  fi
}

# Tests that wait more than they work, or measure nothing which a neighbour could spoil: four rows of them side by side,
# after all others.
patient=("watch" "doctor trust deploy packages" "metrics documents handover" "folders crash resume device")

tests_code=0
run_tests() {
  local cargo=(cargo test --profile lab --workspace --no-fail-fast "${locked[@]}") harness=()
  if [ -n "$keep" ]; then
    export CAROUSEL_LAB_KEEP=1
    harness=(--nocapture --test-threads=1)
  fi
  if [ $# -gt 0 ]; then
    # set -o pipefail: the code is cargo's. The summary comes first, then the end.
    "${cargo[@]}" -- "${harness[@]}" "$@" 2>&1 | tee "$work/tests" || tests_code=$?
    return
  fi
  rm -f "$figures"
  local file name row busy=(--lib --bins)
  for file in tests/tests/*.rs; do
    name=$(basename "$file" .rs)
    case " ${patient[*]} " in *" $name "*) ;; *) busy+=(--test "$name") ;; esac
  done
  { "${cargo[@]}" "${busy[@]}" && "${cargo[@]}" --doc; } 2>&1 | tee "$work/tests" || tests_code=$?
  local rows=()
  for row in "${!patient[@]}"; do
    # shellcheck disable=SC2086 # a list of words
    "${cargo[@]}" $(printf ' --test %s' ${patient[$row]}) >"$work/tests.$row" 2>&1 &
    rows+=($!)
  done
  for row in "${!rows[@]}"; do
    wait "${rows[$row]}" || tests_code=$?
    tee -a "$work/tests" <"$work/tests.$row"
  done
}

# What the tests measured. Of a few tests, the file also has what others measured before: only its path is said.
show_figures() {
  printf '\n=== figures: %s\n' "$figures"
  if [ $# -eq 0 ] && [ -f "$figures" ]; then cat "$figures"; fi
  if [ -z "$record" ]; then return; fi
  if [ "$tests_code" -eq 0 ]; then
    cp "$figures" tests/FIGURES.md
    say "recorded as tests/FIGURES.md"
  else
    complain "not recorded: a test failed"
  fi
}

# The last line counts, as CI and people like it. A test that skips itself counts as passed for cargo.
summary() {
  printf '\n=== times\n'
  printf '%s\n' "${times[@]}"
  printf '\n=== result\n'
  local skipped
  grep -o 'SKIPPED [A-Za-z0-9_]*: .*' "$work/tests" | sort -u >"$work/skipped" || true
  skipped=$(wc -l <"$work/skipped")
  if [ "$skipped" -gt 0 ]; then
    cat "$work/skipped"
    if [ "$(id -u)" -ne 0 ]; then say "(as root, this command installs what is missing and skips nothing)"; fi
  fi
  awk -v skipped="$skipped" '/^test result:/ {
      for (i = 2; i <= NF; i++) { if ($i ~ /^passed/) passed += $(i-1); if ($i ~ /^failed/) failed += $(i-1) }
    } END {
      printf "%d passed, %d failed, %d skipped\n", passed - skipped, failed, skipped
      if (passed + failed == 0) { print "no test ran" > "/dev/stderr"; exit 1 }
      if (skipped > 0 && ENVIRON["CI"] == "true") { print "skipped under CI" > "/dev/stderr"; exit 1 }
    }' "$work/tests"
}

# --- the run ------------------------------------------------------------------------------------------------------

step "tools" install_tools
step "cargo" find_cargo
export CARGO_NET_RETRY=${CARGO_NET_RETRY:-10}
open_doors
step "routers" get_routers
step "systemd-sysupdate" get_sysupdate
step "packager" get_packager
figures=${CARGO_TARGET_DIR:-target}/lab-figures.md
if [ $# -eq 0 ]; then
  step "format" cargo fmt --all --check
  # The profile of everything below, so that what both need is built once.
  step "clippy" cargo clippy --profile lab --workspace --all-targets "${locked[@]}" -- -D warnings
  step "carousel-proto is pure" purity
  step "deploy files" deploy_files
  step "dependencies" dependencies
fi
step "build" cargo build --release "${locked[@]}"
# All of them now, or the rows of tests that run side by side would measure beside a compiler.
step "build of the tests" cargo test --quiet --profile lab --workspace --no-run --tests "${locked[@]}"
# The same inputs each time: a run that finds something is one that anybody can have again.
if [ $# -eq 0 ]; then step "fuzzing" tests/fuzz.sh --runs 2000; fi
step "tests" run_tests "$@"
now_at=result
show_figures "$@"
summary
now_at=tests
exit "$tests_code"
