//! Keys and signatures, all in minisign's formats and made by its library.

use crate::bundle::{read_head, write_manifest};
use crate::cli;
use crate::sandbox;
use blake2::{Blake2b512, Digest};
use carousel_proto::manifest::{Envelope, Manifest, SignatureAlgorithm};
use carousel_proto::outcome::{Failure, Outcome};
use carousel_proto::signature::KeyId;
use carousel_proto::trust::{Trust, not_a_public_key, parse_signature};
use ct_codecs::{Base64, Decoder, Encoder};
use ed25519_dalek::{Signer, SigningKey};
use minisign::{KeyPair, SecretKeyBox};
use std::fs::OpenOptions;
use std::io::{IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// `keygen`: PREFIX.key, readable by its owner only, and PREFIX.pub.
pub fn keygen(arguments: &cli::Keygen) -> Result<(), Failure> {
    let secret_path = with_suffix(&arguments.out, ".key");
    let public_path = with_suffix(&arguments.out, ".pub");
    if !arguments.force {
        for path in [&secret_path, &public_path] {
            if path.exists() {
                return Err(Failure::usage(format!(
                    "{} exists: a lost key cannot be replaced on devices; choose another --out, or --force",
                    path.display()
                )));
            }
        }
    }
    let failed = |e: minisign::PError| Failure::new(Outcome::Failed, format!("no key could be made: {e}"));
    let pair = KeyPair::generate_unencrypted_keypair().map_err(failed)?;
    let secret = pair.sk.to_box(Some("carousel release key: keep it offline")).map_err(failed)?;
    let public = pair.pk.to_box().map_err(failed)?;
    write_new(&secret_path, secret.into_string().as_bytes(), 0o600)?;
    write_new(&public_path, public.into_string().as_bytes(), 0o644)?;
    println!("{}\n{}", secret_path.display(), public_path.display());
    Ok(())
}

/// What of a secret key signs.
pub struct ReleaseKey {
    /// minisign's key id, as it lies in files.
    id: [u8; 8],
    signing: SigningKey,
}

impl ReleaseKey {
    /// minisign's key id.
    pub fn id(&self) -> KeyId {
        KeyId::new(self.id)
    }
}

/// Reads a secret key; asks for its password if it has one.
pub fn read_secret_key(path: &Path) -> Result<ReleaseKey, Failure> {
    let text = read_text(path)?;
    let bad = |why: &str| Failure::usage(format!("{}: {why}", path.display()));
    let encoded = text.lines().nth(1).unwrap_or_default();
    let bytes = Base64::decode_to_vec(encoded, None).unwrap_or_default();
    if bytes.len() == PUBLIC_KEY_LEN {
        return Err(bad("this is a public key; signing takes the secret one, PREFIX.key"));
    }
    if bytes.len() != SECRET_KEY_LEN {
        return Err(bad("not a minisign secret key"));
    }
    // Read here and not by minisign's library, which refuses the empty checksum that `minisign -G -W` writes.
    if bytes[AT_KDF..AT_KDF + 2] == [0, 0] {
        return release_key(&bytes).ok_or_else(|| bad("not a minisign secret key"));
    }
    if !std::io::stdin().is_terminal() {
        return Err(bad(
            "it has a password, and there is no terminal to ask for it; run it by hand, or use --unsigned",
        ));
    }
    let key = SecretKeyBox::from_string(&text)
        .and_then(|key| key.into_secret_key(None))
        .map_err(|e| bad(&format!("cannot be opened ({e})")))?;
    release_key(&key.to_bytes()).ok_or_else(|| bad("not a minisign secret key"))
}

/// Whether a secret key has a password.
pub fn has_password(path: &Path) -> Result<bool, Failure> {
    let text = read_text(path)?;
    let bytes = Base64::decode_to_vec(text.lines().nth(1).unwrap_or_default(), None).unwrap_or_default();
    Ok(bytes.len() == SECRET_KEY_LEN && bytes[AT_KDF..AT_KDF + 2] != [0, 0])
}

// The secret key of minisign: algorithms (2 each: signature, KDF, checksum), salt (32), limits (8 + 8), then:
const SECRET_KEY_LEN: usize = 158;
const PUBLIC_KEY_LEN: usize = 42;
const AT_KDF: usize = 2;
const AT_ID: usize = 54;
const AT_SEED: usize = 62;

fn release_key(bytes: &[u8]) -> Option<ReleaseKey> {
    let id = bytes.get(AT_ID..AT_SEED)?.try_into().ok()?;
    let seed = bytes.get(AT_SEED..AT_SEED + 32)?.try_into().ok()?;
    (bytes[..2] == *b"Ed").then(|| ReleaseKey { id, signing: SigningKey::from_bytes(seed) })
}

/// Reads a public key (minisign's file, or its one line of base64).
pub fn read_public_key(path: &Path) -> Result<minisign_verify::PublicKey, Failure> {
    let text = read_text(path)?;
    minisign_verify::PublicKey::decode(&text)
        .or_else(|_| minisign_verify::PublicKey::from_base64(text.trim()))
        .map_err(|_| Failure::usage(format!("{}: {}", path.display(), not_a_public_key(&text))))
}

/// Signs a manifest; the text of a minisign signature file, prehashed form
/// (<https://jedisct1.github.io/minisign/#signature-format>). minisign's own library salts its signatures;
/// plain Ed25519 (RFC 8032) does not, and a bundle is to be reproducible to the last bit.
pub fn sign(manifest: &[u8], described: &Manifest, key: &ReleaseKey) -> Result<String, Failure> {
    sign_text(manifest, &format!("carousel manifest seq:{}", described.seq), key)
}

/// Signs anything, with a trusted comment.
pub fn sign_text(bytes: &[u8], trusted: &str, key: &ReleaseKey) -> Result<String, Failure> {
    let failed = || Failure::new(Outcome::Failed, "the signature could not be written as text");
    let signature = key.signing.sign(&Blake2b512::digest(bytes)).to_bytes();
    let global = key.signing.sign(&[&signature[..], trusted.as_bytes()].concat()).to_bytes();
    let base64 = |bytes: &[u8]| Base64::encode_to_string(bytes).map_err(|_| failed());
    let first = base64(&[b"ED", &key.id[..], &signature].concat())?;
    Ok(format!("untrusted comment: carousel\n{first}\ntrusted comment: {trusted}\n{}\n", base64(&global)?))
}

/// `seal`: puts a signature made elsewhere into a bundle.
pub fn seal(arguments: &cli::Seal) -> Result<(), Failure> {
    let text = std::fs::read(&arguments.signature).map_err(|e| Failure::reading(&arguments.signature, &e))?;
    if parse_signature(&text).is_none() {
        return Err(Failure::untrusted(format!(
            "{}: not a minisign signature; sign the .manifest file with minisign -S",
            arguments.signature.display()
        )));
    }
    let text = without_untrusted_comment(&text);
    let head = read_head(&arguments.bundle)?;
    let manifest = head.envelope()?.manifest.to_vec();
    let sealed =
        Envelope { manifest: &manifest, algorithm: SignatureAlgorithm::Minisign as u8, signature: &text };
    if let Some(path) = &arguments.key {
        Trust::Keys(vec![read_public_key(path)?])
            .check(&sealed, 0)
            .map_err(|e| Failure::untrusted(format!("{}: {e}", arguments.signature.display())))?;
    }
    let body = sealed
        .emit(usize::from(head.header.symbol_len))
        .map_err(|e| Failure::usage(format!("{}: {e}", arguments.signature.display())))?;
    write_manifest(&arguments.bundle, &head, &body)?;
    println!("{}", arguments.bundle.display());
    Ok(())
}

/// The untrusted comment is nobody's word and takes room in the packet: replaced by a short one.
fn without_untrusted_comment(text: &[u8]) -> Vec<u8> {
    let rest = text.iter().position(|b| *b == b'\n').map_or(text, |at| &text[at..]);
    [b"untrusted comment: carousel", rest].concat()
}

/// `PATH` with something appended to its last component.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn read_text(path: &Path) -> Result<String, Failure> {
    let bytes = sandbox::read(path).map_err(|e| Failure::reading(path, &e))?;
    String::from_utf8(bytes)
        .map_err(|_| Failure::usage(format!("{}: is no text; is it the right file?", path.display())))
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure::writing(path, &e);
    // An existing file would keep its own, perhaps wider, permissions.
    let _ = std::fs::remove_file(path);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)
}
