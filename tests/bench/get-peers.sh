#!/usr/bin/env bash
# The programs that the benchmark `peers` compares us with:   tests/bench/get-peers.sh
#
# Packages of Debian and Ubuntu. As root it installs what is missing, else it names it. None of them is left running:
# the benchmark starts its own in namespaces of its own.
set -euo pipefail
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# A file and the package that brings it; libnorm is a library, and cc makes our driver for it.
needs="uftp:uftp uftpd:uftp udp-sender:udpcast udp-receiver:udpcast nginx:nginx-light curl:curl cc:build-essential
       /usr/include/normApi.h:libnorm-dev"

fail() { printf 'get-peers: %s\n' "$*" >&2; exit 1; }

have() {
  case $1 in
    /*) [ -e "$1" ] ;;
    *) command -v "$1" >/dev/null 2>&1 ;;
  esac
}

missing_packages() {
  local need
  for need in $needs; do
    have "${need%%:*}" || echo "${need##*:}"
  done | sort -u | tr '\n' ' '
}

# Installing a daemon must not start it: this may be somebody's machine.
quietly() {
  local policy=/usr/sbin/policy-rc.d code=0
  if [ -e "$policy" ]; then "$@" && return 0 || return; fi
  printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy"
  "$@" || code=$?
  rm -f "$policy"
  return "$code"
}

missing=$(missing_packages)
if [ -n "$missing" ]; then
  [ "$(id -u)" -eq 0 ] || fail "missing, and only root can install it: $missing"
  have apt-get || fail "missing, and there is no apt-get: install ${missing}by hand"
  echo "installing: $missing"
  apt=(apt-get -o DPkg::Lock::Timeout=120)
  export DEBIAN_FRONTEND=noninteractive
  "${apt[@]}" update -qq
  # shellcheck disable=SC2086 # a list of words
  quietly "${apt[@]}" install -y -qq --no-install-recommends $missing >/dev/null
  missing=$(missing_packages)
  [ -z "$missing" ] || fail "still missing after the installation: $missing"
fi
dpkg-query -W -f '${Package} ${Version}\n' uftp udpcast libnorm1 nginx-light curl 2>/dev/null ||
  echo "all there, but not as packages: versions unknown"
