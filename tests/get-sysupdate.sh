#!/usr/bin/env bash
# systemd-sysupdate for the lab:   tests/get-sysupdate.sh DIR
#
# Debian has it since 13, in systemd-container. On an older Debian this unpacks the packages of 13 under DIR, which the
# lab then gives to the program as its root folder; where the machine has one of its own there is nothing to do.
set -euo pipefail

if [ $# -ne 1 ]; then printf 'usage: get-sysupdate.sh DIR\n' >&2; exit 1; fi
if [ -x /usr/lib/systemd/systemd-sysupdate ]; then echo "this machine has a systemd-sysupdate"; exit; fi
exec "$(dirname "$0")/get-debian.sh" "$1" "install systemd-container 257 or newer by hand" \
  systemd-container libsystemd-shared libc6 libacl1 libaudit1 libblkid1 libcap2 libcap-ng0 libcrypt1 libfdisk1 \
  libbz2-1.0 libgcc-s1 liblzma5 libmount1 libpam0g libpcre2-8-0 libseccomp2 libselinux1 libssl3t64 libuuid1 libzstd1 zlib1g \
  -- /usr/lib/systemd/systemd-sysupdate /usr/lib/systemd/systemd-import
