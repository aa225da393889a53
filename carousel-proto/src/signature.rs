//! Keys and signatures of minisign in few bytes, so that several fit into a packet.
//!
//! A minisign signature is 250 bytes of text, mostly base64. Here are its four parts by themselves:
//!
//! ```text
//!  0        8             72            136       137
//!  | key id | signature A | signature B | length  | trusted comment … |
//! ```
//!
//! Nothing is lost: from these the text can be written again, and `minisign -V` accepts it. PROTOCOL.md section 4.7.

use minicbor::bytes::ByteArray;
use std::fmt::{self, Display, Formatter};

/// minisign's number of a key pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, minicbor::Encode, minicbor::Decode)]
#[cbor(transparent)]
pub struct KeyId(ByteArray<8>);

impl KeyId {
    /// From its bytes as they lie in minisign's files.
    pub fn new(bytes: [u8; 8]) -> Self {
        Self(bytes.into())
    }

    /// Reads what [`Display`] writes and minisign prints.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.len() == 16 && text.bytes().all(|c| c.is_ascii_hexdigit());
        digits.then(|| u64::from_str_radix(text, 16).ok()).flatten().map(|n| Self::new(n.to_le_bytes()))
    }
}

impl Display for KeyId {
    /// 16 hexadecimal digits, as minisign prints it.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}", u64::from_le_bytes(*self.0))
    }
}

/// A public key: its id and 32 bytes of Ed25519.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, minicbor::Encode, minicbor::Decode)]
#[cbor(transparent)]
pub struct Key(ByteArray<40>);

impl Key {
    /// Reads minisign's public key file, or its one line of base64.
    pub fn parse(text: &str) -> Option<Self> {
        let line = text.lines().nth(1).unwrap_or(text).trim();
        let bytes = from_base64(line)?;
        let key = bytes.strip_prefix(b"Ed")?;
        Some(Self(<[u8; 40]>::try_from(key).ok()?.into()))
    }

    /// Its id.
    pub fn id(&self) -> KeyId {
        let mut id = [0; 8];
        id.copy_from_slice(&self.0[..8]);
        KeyId::new(id)
    }

    /// The 32 bytes of Ed25519.
    pub fn public(&self) -> &[u8] {
        &self.0[8..]
    }

    /// Whether a signature over these bytes is by this key and good.
    pub fn has_signed(&self, bytes: &[u8], signature: &Signature) -> bool {
        let key = to_base64(&[b"Ed", &self.0[..]].concat());
        let text = signature.to_minisign();
        let (Ok(key), Ok(text)) =
            (minisign_verify::PublicKey::from_base64(&key), minisign_verify::Signature::decode(&text))
        else {
            return false;
        };
        signature.id == self.id() && key.verify(bytes, &text, false).is_ok()
    }
}

/// One signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// Whose it claims to be.
    pub id: KeyId,
    /// Over the BLAKE2b-512 of what is signed.
    a: [u8; 64],
    /// Over A and the comment.
    b: [u8; 64],
    comment: String,
}

/// Most signatures of one object.
pub const MAX_SIGNATURES: usize = 8;
const FIXED_LEN: usize = 8 + 64 + 64 + 1;

impl Signature {
    /// Reads the text of a minisign signature file; prehashed form only.
    pub fn from_minisign(text: &[u8]) -> Option<Self> {
        Self::of_manifest(text).filter(|signature| signature.comment.len() <= 255)
    }

    /// The same, with a trusted comment of any length: beside a manifest the text itself travels.
    pub(crate) fn of_manifest(text: &[u8]) -> Option<Self> {
        let mut lines = std::str::from_utf8(text).ok()?.lines();
        let first = from_base64(lines.nth(1)?)?;
        let comment = lines.next()?.strip_prefix(COMMENT)?.to_owned();
        let b = from_base64(lines.next()?)?.try_into().ok()?;
        let (id, a) = first.strip_prefix(b"ED")?.split_at_checked(8)?;
        let signature = Self { id: KeyId::new(id.try_into().ok()?), a: a.try_into().ok()?, b, comment };
        // One carriage return at its end belonged to the line; another one would make another text of it.
        (!signature.comment.contains('\r')).then_some(signature)
    }

    /// The text that `minisign -V` reads.
    pub fn to_minisign(&self) -> String {
        let first = to_base64(&[b"ED", &self.id.0[..], &self.a].concat());
        format!("untrusted comment: carousel\n{first}\n{COMMENT}{}\n{}\n", self.comment, to_base64(&self.b))
    }

    /// Reads the signatures that stand one behind the other.
    pub fn parse_all(mut bytes: &[u8]) -> Option<Vec<Self>> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let (fixed, rest) = bytes.split_at_checked(FIXED_LEN)?;
            let (comment, rest) = rest.split_at_checked(usize::from(fixed[FIXED_LEN - 1]))?;
            bytes = rest;
            let comment = std::str::from_utf8(comment).ok()?;
            // A line end would make another text of it.
            if found.len() == MAX_SIGNATURES || comment.contains(['\n', '\r']) {
                return None;
            }
            found.push(Self {
                id: KeyId::new(fixed[..8].try_into().ok()?),
                a: fixed[8..72].try_into().ok()?,
                b: fixed[72..136].try_into().ok()?,
                comment: comment.to_owned(),
            });
        }
        Some(found)
    }

    /// Writes signatures one behind the other.
    pub fn emit_all(signatures: &[Self]) -> Vec<u8> {
        let mut out = Vec::new();
        for signature in signatures {
            out.extend_from_slice(&signature.id.0[..]);
            out.extend_from_slice(&signature.a);
            out.extend_from_slice(&signature.b);
            out.push(signature.comment.len() as u8); // at most 255
            out.extend_from_slice(signature.comment.as_bytes());
        }
        out
    }
}

const COMMENT: &str = "trusted comment: ";
const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// RFC 4648 section 4.
fn to_base64(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let bits =
            three.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for place in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * place) & 63) as usize];
            out.push(if place <= three.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

fn from_base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    let mut out = Vec::with_capacity(digits.len() * 3 / 4);
    let (mut bits, mut count) = (0u32, 0);
    for c in digits.bytes() {
        bits = bits << 6 | DIGITS.iter().position(|digit| *digit == c)? as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    // One way to write it: whole groups, and no bits set that belong to no byte.
    (text.len().is_multiple_of(4) && bits == 0 && text.len() - digits.len() == (3 - out.len() % 3) % 3)
        .then_some(out)
}

/// Key pairs for tests.
#[cfg(test)]
pub(crate) mod pairs {
    use super::*;
    use blake2::{Blake2b512, Digest};
    use ed25519_dalek::{Signer, SigningKey};

    /// The key pair of a number.
    pub(crate) struct Pair(SigningKey, KeyId);

    impl Pair {
        pub(crate) fn new(number: u8) -> Self {
            Self(SigningKey::from_bytes(&[number; 32]), KeyId::new([number; 8]))
        }

        pub(crate) fn key(&self) -> Key {
            let bytes = [&self.1.0[..], self.0.verifying_key().as_bytes()].concat();
            Key(<[u8; 40]>::try_from(bytes).unwrap().into())
        }

        pub(crate) fn sign(&self, bytes: &[u8]) -> Signature {
            self.sign_and_say(bytes, "x")
        }

        pub(crate) fn sign_and_say(&self, bytes: &[u8], comment: &str) -> Signature {
            let a = self.0.sign(&Blake2b512::digest(bytes)).to_bytes();
            let b = self.0.sign(&[&a[..], comment.as_bytes()].concat()).to_bytes();
            Signature { id: self.1, a, b, comment: comment.into() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: &str = include_str!("../vectors/test.pub");
    const SIGNED: &[u8] = include_bytes!("../vectors/full.manifest");
    const TEXT: &[u8] = include_bytes!("../vectors/full.manifest.minisig");

    #[test]
    fn minisign_s_signature_survives_being_made_short() {
        let (key, signature) = (Key::parse(KEY).unwrap(), Signature::from_minisign(TEXT).unwrap());
        assert_eq!(signature.to_minisign().as_bytes(), TEXT);
        let list = [signature.clone(), signature];
        let read = Signature::parse_all(&Signature::emit_all(&list)).unwrap();
        assert_eq!(read, list);
        assert!(key.has_signed(SIGNED, &read[1]));
        assert!(!key.has_signed(&SIGNED[1..], &read[1]));
        assert_eq!((key.id(), key.id().to_string().as_str()), (read[0].id, "0807060504030201"));
        assert_eq!(KeyId::parse("0807060504030201"), Some(key.id()));
        assert_eq!((KeyId::parse("807060504030201"), KeyId::parse("+807060504030201")), (None, None));
    }

    #[test]
    fn a_long_comment_fits_beside_a_manifest_only() {
        let pair = pairs::Pair::new(1);
        let text = pair.sign_and_say(b"manifest", &"x".repeat(256)).to_minisign();
        assert_eq!(Signature::from_minisign(text.as_bytes()), None);
        let read = Signature::of_manifest(text.as_bytes()).unwrap();
        assert!(pair.key().has_signed(b"manifest", &read));
    }

    #[test]
    fn what_was_tampered_with_is_no_good() {
        let (key, signature) = (Key::parse(KEY).unwrap(), Signature::from_minisign(TEXT).unwrap());
        let bytes = Signature::emit_all(&[signature]);
        for at in 0..bytes.len() {
            let mut wrong = bytes.clone();
            wrong[at] ^= 1;
            let good = Signature::parse_all(&wrong).is_some_and(|list| key.has_signed(SIGNED, &list[0]));
            assert!(!good, "byte {at}");
        }
        assert_eq!(Signature::parse_all(&bytes.repeat(MAX_SIGNATURES + 1)), None);
    }

    proptest! {
        #[test]
        fn base64_mirrors(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(from_base64(&to_base64(&bytes)), Some(bytes));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), text in ".{0,200}") {
            if let Some(list) = Signature::parse_all(&bytes) {
                prop_assert_eq!(Signature::emit_all(&list), bytes);
            }
            let _ = (Signature::from_minisign(text.as_bytes()), Key::parse(&text), from_base64(&text));
        }
    }
}
