#!/usr/bin/env bash
# Debian packages of both programs:   deploy/build-deb.sh OUT [OPTION OF cargo deb…]
# of what has been built before:      deploy/build-deb.sh --built OUT […]
#
# Needs cargo-deb (`cargo install --locked cargo-deb`), and dpkg-dev to find out which libraries are needed. The same
# sources give the same packages: times are those of the last commit, or SOURCE_DATE_EPOCH.
set -euo pipefail
umask 022
fail() { printf 'build-deb: %s\n' "$*" >&2; exit 1; }

built=''
if [ "${1:-}" = --built ]; then built=1 && shift; fi
[ $# -ge 1 ] && [ "${1#-}" = "$1" ] || fail "usage: build-deb.sh [--built] OUT [OPTION OF cargo deb…]"
out=$(realpath -m -- "$1") && shift
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
# As `cargo deb` it would be found in PATH only, where cargo looks; and cargo may be absent from PATH itself.
cargo-deb --version >/dev/null 2>&1 || fail "cargo-deb is missing: cargo install --locked cargo-deb"
command -v dpkg-shlibdeps >/dev/null || fail "dpkg-shlibdeps is missing: install dpkg-dev"
if [ -z "${SOURCE_DATE_EPOCH:-}" ]; then
  SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || stat -c %Y CHANGELOG.md)
  export SOURCE_DATE_EPOCH
fi

target=${CARGO_TARGET_DIR:-target}/release
if [ -z "$built" ]; then
  cargo build --release --locked -p carousel-server -p carousel-client -p carousel-tests \
    --bin carousel-server --bin carousel-client --bin documents
fi
"$target/documents" deploy "$target/documents.d"
# As Debian wants pages; cargo-deb does it only where it does not take them for something that cargo made.
find "$target/documents.d" -path '*/man[15]/*' -exec gzip -9n {} +
mkdir -p "$out"
for package in carousel-server carousel-client; do
  cargo-deb -q --no-build -p "$package" -o "$out/" "$@" || fail "cargo-deb does not make $package"
done
