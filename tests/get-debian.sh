#!/usr/bin/env bash
# Programs of Debian 13 on an older Debian:   tests/get-debian.sh DIR REMEDY PACKAGE… -- PROGRAM…
#
# Unpacks the packages under DIR, which must be all that the programs load, and tries whether those run with DIR as
# their root folder. REMEDY is what to do where that cannot be. Where the programs are there, there is nothing to do.
# The mirror, its proxy and all else are what apt on this machine is set up with. Needs no root, installs nothing.
set -euo pipefail
umask 022                 # an ordinary user, too, must be able to run what is unpacked
PATH=$PATH:/usr/sbin:/sbin

release=trixie
keys=/usr/share/keyrings/debian-archive-keyring.gpg

fail() { printf 'get-debian: %s\n' "$*" >&2; exit 1; }

if [ $# -lt 5 ]; then fail "usage: get-debian.sh DIR REMEDY PACKAGE… -- PROGRAM…"; fi
dir=$(realpath -m -- "$1")
remedy=$2
shift 2
packages=()
while [ "$1" != -- ]; do packages+=("$1") && shift; done
shift
if [ -x "$dir$1" ]; then echo "all there"; exit; fi
for tool in apt-get dpkg-deb; do
  command -v $tool >/dev/null || fail "no $tool: $remedy"
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
  fail "no Debian mirror among the sources of apt: $remedy"
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
get download "${packages[@]}"

for place in bin sbin lib lib64; do ln -s "usr/$place" "$new/root/$place"; done
for deb in *.deb; do
  dpkg-deb -x "$deb" "$new/root" || fail "cannot unpack ${deb%%_*}"
done
rm -rf "$new"/root/usr/share/{doc,man}
inside=(chroot "$new/root")
if [ "$(id -u)" -ne 0 ]; then inside=(unshare -r "${inside[@]}"); fi
for program in "$@"; do
  said=$("${inside[@]}" "$program" --version 2>&1) || fail "$program does not run: ${said%%$'\n'*}"
done
rm -rf "$dir"
mv -T "$new/root" "$dir"
echo "${said%%$'\n'*} from $mirror $release"
