//! The real `minisign` program reads what we sign and signs what we read.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use carousel_tests::lab::Folder;
use carousel_tests::scene::{self, AsOsString, args};
use carousel_tests::{bins, lab};
use std::fs;
use std::path::{Path, PathBuf};

/// A folder, or a skip where there is no minisign.
fn desk(test: &str) -> Option<Folder> {
    if !lab::have("minisign") {
        lab::skip(test, "the program minisign is missing");
        return None;
    }
    Some(Folder::new())
}

#[track_caller]
fn ends(program: &Path, words: &[&dyn AsOsString], code: i32) {
    let out = bins::run(program, args(words));
    let said = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert_eq!(out.status.code(), Some(code), "{} {:?}: {said:?}", program.display(), args(words));
}

fn minisign() -> PathBuf {
    "minisign".into()
}

#[test]
fn minisign_verifies_our_signature() {
    let Some(dir) = desk("minisign_verifies_our_signature") else { return };
    let packed = scene::pack(dir.path(), 100_000, &[]);
    let prefix = dir.path().join("exported");
    ends(&bins::server(), &[&"inspect", &packed.bundle, &"--export", &prefix], 0);
    let manifest = dir.path().join("exported.manifest");
    assert!(dir.path().join("exported.manifest.minisig").exists());
    // -H: the prehashed form is required, not merely accepted.
    ends(&minisign(), &[&"-V", &"-H", &"-p", &packed.keys.public, &"-m", &manifest], 0);

    let mut bytes = fs::read(&manifest).unwrap();
    bytes[10] ^= 1;
    fs::write(&manifest, bytes).unwrap();
    ends(&minisign(), &[&"-V", &"-H", &"-p", &packed.keys.public, &"-m", &manifest], 1);
}

/// Packs unsigned, signs with the real program and the given secret key, seals, inspects with the public key.
fn air_gap(dir: &Path, secret: &Path, public: &Path) {
    let (object, bundle) = (dir.join("object"), dir.join("F.carousel"));
    carousel_tests::object::write(&object, 100_000, 1).unwrap();
    ends(&bins::server(), &[&"pack", &object, &"--unsigned", &"--out", &bundle], 0);
    let manifest = dir.join("F.carousel.manifest");
    let signature = dir.join("F.carousel.manifest.minisig");
    ends(&minisign(), &[&"-S", &"-s", &secret, &"-m", &manifest], 0);
    ends(&bins::server(), &[&"seal", &bundle, &"--signature", &signature], 0);
    ends(&bins::server(), &[&"inspect", &bundle, &"--key", &public], 0);
    let other = scene::keygen(dir, "other");
    ends(&bins::server(), &[&"inspect", &bundle, &"--key", &other.public], 3);
}

#[test]
fn we_seal_what_minisign_signed() {
    let Some(dir) = desk("we_seal_what_minisign_signed") else { return };
    let (secret, public) = (dir.path().join("minisign.key"), dir.path().join("minisign.pub"));
    ends(&minisign(), &[&"-G", &"-W", &"-p", &public, &"-s", &secret], 0);
    air_gap(dir.path(), &secret, &public);
}

#[test]
fn minisign_signs_with_our_secret_key() {
    let Some(dir) = desk("minisign_signs_with_our_secret_key") else { return };
    let keys = scene::keygen(dir.path(), "ours");
    air_gap(dir.path(), &keys.secret, &keys.public);
}

#[test]
fn we_sign_with_minisigns_secret_key() {
    let Some(dir) = desk("we_sign_with_minisigns_secret_key") else { return };
    let (secret, public) = (dir.path().join("minisign.key"), dir.path().join("minisign.pub"));
    ends(&minisign(), &[&"-G", &"-W", &"-p", &public, &"-s", &secret], 0);
    let (object, bundle) = (dir.path().join("object"), dir.path().join("F.carousel"));
    carousel_tests::object::write(&object, 100_000, 2).unwrap();
    ends(&bins::server(), &[&"pack", &object, &"--key", &secret, &"--out", &bundle], 0);
    ends(&bins::server(), &[&"inspect", &bundle, &"--key", &public], 0);
}

#[test]
fn keygen_keeps_the_secret_to_its_owner() {
    let Some(dir) = desk("keygen_keeps_the_secret_to_its_owner") else { return };
    let keys = scene::keygen(dir.path(), "ours");
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&keys.secret).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    // A second keygen must not overwrite the first.
    let before = fs::read(&keys.secret).unwrap();
    let out = bins::run(bins::server(), args(&[&"keygen", &"--out", &dir.path().join("ours")]));
    assert_ne!(out.status.code(), Some(0));
    assert_eq!(fs::read(&keys.secret).unwrap(), before);
}
