#!/usr/bin/env bash
# Routers for the lab:   tests/get-pim6d.sh DIR
#
# FRR's pim6d is in Debian since 13. On an older Debian this unpacks the packages of 13 under DIR, which the lab then
# gives to the daemons as their root folder; where the machine has a pim6d of its own there is nothing to do.
set -euo pipefail

if [ $# -ne 1 ]; then printf 'usage: get-pim6d.sh DIR\n' >&2; exit 1; fi
if [ -x /usr/lib/frr/pim6d ]; then echo "this machine has a pim6d"; exit; fi
# What zebra, mgmtd and pim6d load; the last of them glibc asks for when a thread ends.
exec "$(dirname "$0")/get-debian.sh" "$1" "install an FRR with pim6d (version 10 or newer) by hand" \
  frr libc6 libcap2 libcrypt1 libjson-c5 liblua5.3-0 liblzma5 libpcre2-8-0 libprotobuf-c1 libunwind8 libxxhash0 \
  libyang3 libgcc-s1 -- /usr/lib/frr/zebra /usr/lib/frr/mgmtd /usr/lib/frr/pim6d
