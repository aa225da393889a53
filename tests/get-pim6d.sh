#!/usr/bin/env bash
# Routers for the lab:   tests/get-pim6d.sh DIR
#
# FRR's pim6d is in Debian since 13. On an older Debian this unpacks the packages of 13 under DIR, which the lab then
# gives to the daemons as their root folder; where the machine has a pim6d of its own there is nothing to do.
# The mirror, its proxy and all else are what apt on this machine is set up with. Needs no root, installs nothing.
set -euo pipefail
umask 022                 # an ordinary user, too, must be able to run what is unpacked
PATH=$PATH:/usr/sbin:/sbin

release=trixie
keys=/usr/share/keyrings/debian-archive-keyring.gpg
# What zebra, mgmtd and pim6d load; the last of them glibc asks for when a thread ends.
packages="frr libc6 libcap2 libcrypt1 libjson-c5 liblua5.3-0 liblzma5 libpcre2-8-0 libprotobuf-c1 libunwind8
          libxxhash0 libyang3 libgcc-s1"

fail() { printf 'get-pim6d: %s\n' "$*" >&2; exit 1; }

if [ $# -ne 1 ]; then fail "usage: get-pim6d.sh DIR"; fi
dir=$(realpath -m -- "$1")
if [ -x /usr/lib/frr/pim6d ]; then echo "this machine has a pim6d"; exit; fi
if [ -x "$dir/usr/lib/frr/pim6d" ]; then echo "all there"; exit; fi
for tool in apt-get dpkg-deb; do
  command -v $tool >/dev/null || fail "no $tool: install an FRR with pim6d (version 10 or newer) by hand"
done
[ -r "$keys" ] || fail "$keys is missing: install debian-archive-keyring"

# DIR appears by a rename at the very end: what is called DIR is complete.
new=$dir.new
rm -rf "$new"
trap 'rm -rf "$new"' EXIT
mkdir -p "$new"/apt/{lists,cache/archives}/partial "$new"/apt/debs "$new"/root/usr/{bin,sbin,lib,lib64} 2>/dev/null ||
  fail "cannot write to $new"
: >"$new/apt/status"
# Lists, cache and status of our own, so that apt neither needs nor changes the machine's.
cat >"$new/apt/conf" <<CONF
Dir::State::lists "$new/apt/lists";
Dir::State::status "$new/apt/status";
Dir::Cache "$new/apt/cache";
APT::Sandbox::User "";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::Retries "2";
Acquire::http::Timeout "20";
Acquire::https::Timeout "20";
CONF
export APT_CONFIG=$new/apt/conf

get() { # ARGUMENT…: apt-get, whose first complaint is ours if it fails
  apt-get -q "$@" >"$new/apt/said" 2>&1 ||
    fail "apt-get $1: $(grep -m 1 '^[EW]:' "$new/apt/said" || tail -n 1 "$new/apt/said")"
}

# Sources are written in two styles and several places: apt knows them all, but what each is only after an update.
# That may fail for some of them; one Debian mirror is enough.
debian() { apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | sed -n 1p; }
mirror=$(unset APT_CONFIG && debian)
if [ -z "$mirror" ]; then
  mirror=$( (get update) 2>"$new/apt/why" || true; debian)
fi
if [ -z "$mirror" ]; then
  if [ -s "$new/apt/why" ]; then cat "$new/apt/why" >&2; fi
  fail "no Debian mirror among the sources of apt: install an FRR with pim6d (version 10 or newer) by hand"
fi

echo "deb [signed-by=$keys] $mirror $release main" >"$new/apt/sources.list"
cat >>"$new/apt/conf" <<CONF
Dir::Etc::sourcelist "$new/apt/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
CONF
get update
cd "$new/apt/debs"
# shellcheck disable=SC2086 # a list of words
get download $packages

for place in bin sbin lib lib64; do ln -s "usr/$place" "$new/root/$place"; done
for deb in *.deb; do
  dpkg-deb -x "$deb" "$new/root" || fail "cannot unpack ${deb%%_*}"
done
rm -rf "$new"/root/usr/share/{doc,man}
inside=(chroot "$new/root")
if [ "$(id -u)" -ne 0 ]; then inside=(unshare -r "${inside[@]}"); fi
for daemon in zebra mgmtd pim6d; do
  said=$("${inside[@]}" "/usr/lib/frr/$daemon" --version 2>&1) || fail "$daemon does not run: ${said%%$'\n'*}"
done
rm -rf "$dir"
mv -T "$new/root" "$dir"
echo "${said%%$'\n'*} from $mirror $release"
