//! Domain names: labels of bytes, compared without regard to ASCII case (RFC 1035, RFC 4343). An instance label of
//! DNS-SD may hold spaces, dots and UTF-8 (RFC 6763, section 4.1), which is why text alone will not do.

use std::fmt::{self, Debug, Display, Formatter, Write};
use std::str::FromStr;

/// The labels that end the name of every DNS-SD service of ours, before its domain.
const SERVICE: [&[u8]; 2] = [b"_carousel", b"_udp"];
/// Bytes of a label.
const MAX_LABEL: usize = 63;
/// Bytes of a name as it travels: a length before each label, and the root's.
const MAX_NAME: usize = 255;

/// A domain name, always absolute.
#[derive(Clone, Default)]
pub struct Name(Vec<Vec<u8>>);

/// Why a text is no domain name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// An empty label, or nothing at all.
    #[error("{0:?} is no domain name: a label is empty")]
    Empty(String),
    /// A label of more than 63 bytes, or a name of more than 255.
    #[error("{0:?} is no domain name: labels have 63 bytes or less, names 255")]
    TooLong(String),
    /// A backslash before nothing, or before a number above 255; a bare control character.
    #[error("{0:?} is no domain name: write odd characters as \\DDD, DDD from 000 to 255")]
    Escape(String),
}

impl Name {
    /// A name from its labels; `None` if one of them, or the whole, has an impossible length.
    pub fn from_labels<T: Into<Vec<u8>>>(labels: impl IntoIterator<Item = T>) -> Option<Self> {
        let name = Self(labels.into_iter().map(Into::into).collect());
        let each = name.0.iter().all(|label| (1..=MAX_LABEL).contains(&label.len()));
        let whole = name.0.iter().map(|label| label.len() + 1).sum::<usize>() < MAX_NAME;
        (each && whole).then_some(name)
    }

    /// The labels, the root not among them.
    pub fn labels(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(Vec::as_slice)
    }

    /// Whether this is the root, which as the target of an SRV record means "not here".
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this is `domain` or below it.
    pub fn is_within(&self, domain: &Self) -> bool {
        self.0.len() >= domain.0.len() && same(&self.0[self.0.len() - domain.0.len()..], &domain.0)
    }

    /// `_carousel._udp` in a domain: where its services are listed.
    pub fn service_list(domain: &Self) -> Option<Self> {
        Self::from_labels(SERVICE.into_iter().chain(domain.labels()))
    }

    /// The instance's own name, for people, if this is a DNS-SD service of ours.
    pub fn instance(&self) -> Option<String> {
        (self.service_at() == Some(1)).then(|| String::from_utf8_lossy(&self.0[0]).into_owned())
    }

    /// The domain behind `_carousel._udp`, if that is in the name.
    pub fn domain(&self) -> Option<Self> {
        self.service_at().map(|at| Self(self.0[at + SERVICE.len()..].to_vec()))
    }

    /// How many labels stand before `_carousel._udp`.
    pub fn service_at(&self) -> Option<usize> {
        self.0.windows(SERVICE.len()).position(|two| same(two, &SERVICE.map(<[u8]>::to_vec)))
    }

    /// The same with everything before `_carousel._udp` as one label: instance names may contain dots, and people
    /// do not escape them.
    pub fn with_whole_instance(self) -> Option<Self> {
        match self.service_at() {
            Some(at) if at > 1 => {
                let (instance, rest) = self.0.split_at(at);
                Self::from_labels(std::iter::once(instance.join(&b'.')).chain(rest.iter().cloned()))
            }
            _ => Some(self),
        }
    }

    /// The labels in lower case with dots between them and nothing escaped: what groups are derived from.
    pub fn lower_text(&self) -> Vec<u8> {
        self.0.join(&b'.').to_ascii_lowercase()
    }

    /// How a zone file spells this, whatever its `$ORIGIN`.
    pub fn absolute(&self) -> String {
        zone_labels(&self.0) + "."
    }

    /// How a zone file that has `origin` as its `$ORIGIN` spells this (RFC 1035, section 5.1).
    pub fn in_zone(&self, origin: &Self) -> String {
        if !self.is_within(origin) {
            return self.absolute();
        }
        match &self.0[..self.0.len() - origin.0.len()] {
            [] => "@".into(),
            labels => zone_labels(labels),
        }
    }
}

/// Letters, digits, hyphens and underscores as they are, everything else escaped: right in every zone file.
fn zone_labels(labels: &[Vec<u8>]) -> String {
    let mut text = String::new();
    for (i, label) in labels.iter().enumerate() {
        if i > 0 {
            text.push('.');
        }
        for &byte in label {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => text.push(char::from(byte)),
                b'!'..=b'~' => text.extend(['\\', char::from(byte)]),
                _ => {
                    let _ = write!(text, "\\{byte:03}"); // writing to a String cannot fail
                }
            }
        }
    }
    text
}

fn same(a: &[Vec<u8>], b: &[Vec<u8>]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.eq_ignore_ascii_case(b))
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        same(&self.0, &other.0)
    }
}

impl Eq for Name {}

impl FromStr for Name {
    type Err = NameError;

    /// Takes what people write: with or without the last dot, with or without escapes.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let escape = || NameError::Escape(text.to_owned());
        if text == "." {
            return Ok(Self::default());
        }
        let mut labels = vec![Vec::new()];
        let mut rest = text.as_bytes();
        while let Some((&byte, after)) = rest.split_first() {
            rest = after;
            let byte = match (byte, rest) {
                (b'.', _) => {
                    labels.push(Vec::new());
                    continue;
                }
                (b'\\', [a, b, c, after @ ..]) if a.is_ascii_digit() => {
                    rest = after;
                    let digits =
                        std::str::from_utf8(&[*a, *b, *c]).map(str::to_owned).map_err(|_| escape())?;
                    digits.parse().map_err(|_| escape())?
                }
                (b'\\', [next, after @ ..]) if !next.is_ascii_digit() => {
                    rest = after;
                    *next
                }
                (b'\\', _) | (0..=31 | 127, _) => return Err(escape()),
                (byte, _) => byte,
            };
            if let Some(label) = labels.last_mut() {
                label.push(byte);
            }
        }
        // A dot at the end says that the name is absolute, as all of ours are.
        if labels.len() > 1 && labels.last().is_some_and(Vec::is_empty) {
            labels.pop();
        }
        if labels.iter().any(Vec::is_empty) {
            return Err(NameError::Empty(text.to_owned()));
        }
        Self::from_labels(labels).ok_or_else(|| NameError::TooLong(text.to_owned()))
    }
}

impl Debug for Name {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

impl Display for Name {
    /// For people and for reading back: dots and backslashes inside labels escaped, and what would upset a terminal.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.is_root() {
            return f.write_char('.');
        }
        for (i, label) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_char('.')?;
            }
            for part in label.utf8_chunks() {
                for c in part.valid().chars() {
                    match c {
                        '.' | '\\' => write!(f, "\\{c}")?,
                        c if c.is_control() => decimal(f, c.encode_utf8(&mut [0; 4]).as_bytes())?,
                        c => f.write_char(c)?,
                    }
                }
                decimal(f, part.invalid())?;
            }
        }
        Ok(())
    }
}

fn decimal(f: &mut Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "\\{byte:03}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn what_people_write() {
        assert_eq!(name("Example.NET."), name("example.net"));
        assert_eq!(name(r"a\046b.c").labels().collect::<Vec<_>>(), [&b"a.b"[..], b"c"]);
        assert_eq!(name(r"a\.b.c"), name(r"a\046b.c"));
        assert!(name(".").is_root());
        for bad in ["", "..", "a..b", ".a"] {
            assert!(matches!(bad.parse::<Name>(), Err(NameError::Empty(_))), "{bad}");
        }
        for bad in [r"a\", r"a\25", r"a\256", r"a\2x5", "a\nb", r"\1é"] {
            assert!(matches!(bad.parse::<Name>(), Err(NameError::Escape(_))), "{bad}");
        }
        let long = "a".repeat(63);
        assert!(long.parse::<Name>().is_ok() && format!("a{long}").parse::<Name>().is_err());
        // Three labels of 63 and one of 61 make 255 bytes with their lengths and the root's.
        let whole = |last: usize| [&long[..], &long, &long, &"b".repeat(last)].join(".").parse::<Name>();
        assert!(whole(61).is_ok() && matches!(whole(62), Err(NameError::TooLong(_))));
    }

    #[test]
    fn services() {
        let n = name("Gateway 1.2._carousel._UDP.example.net").with_whole_instance().unwrap();
        assert_eq!(n.instance().as_deref(), Some("Gateway 1.2"));
        assert_eq!(n.domain(), Some(name("example.net")));
        assert_eq!(n.to_string(), r"Gateway 1\.2._carousel._UDP.example.net");
        assert_eq!(n.in_zone(&name("EXAMPLE.net")), r"Gateway\0321\.2._carousel._UDP");
        assert_eq!(Name::service_list(&name("example.net")), Some(name("_carousel._udp.example.net")));
        for other in ["example.net", "_carousel._tcp.example.net", "_carousel._udp.example.net"] {
            assert_eq!(name(other).instance(), None);
        }
    }

    #[test]
    fn zone_spelling() {
        let origin = name("example.net");
        assert_eq!(name("example.net").in_zone(&origin), "@");
        assert_eq!(name("notexample.net").in_zone(&origin), "notexample.net.");
        assert_eq!(name(r#"a"b;c@d$é.example.net"#).in_zone(&origin), r#"a\"b\;c\@d\$\195\169"#);
    }

    proptest! {
        #[test]
        fn text_and_back(labels in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..=20), 1..=8)) {
            let name = Name::from_labels(labels).unwrap();
            prop_assert_eq!(&name.to_string().parse::<Name>().unwrap().0, &name.0);
            prop_assert_eq!(&name.in_zone(&"x.y".parse().unwrap()).parse::<Name>().unwrap().0, &name.0);
        }

        #[test]
        fn any_text_is_a_name_or_an_error(text in "(\\PC|[.\\\\0-9])*") {
            let _ = text.parse::<Name>();
        }
    }
}
