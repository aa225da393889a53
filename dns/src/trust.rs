//! Trust anchors: DNSKEY and DS records in zone-file form, and the zone keys that they vouch for.
//!
//! hickory takes keys only, no digests, and asks the parent for a DS as soon as a zone has a key that is no anchor.
//! A zone whose anchor we were given need not have a signed parent, so we check the zone's own key set here (RFC
//! 4035, section 5.3) and hand over all keys in it.

use crate::error::LookupError;
use carousel_proto::units::show_moment;
use hickory_resolver::proto::dnssec::rdata::{DNSKEY, DNSSECRData, DS, RRSIG};
use hickory_resolver::proto::dnssec::{PublicKey, TrustAnchors, Verifier};
use hickory_resolver::proto::rr::{DNSClass, LowerName, Name, RData, Record, RecordType};
use hickory_resolver::proto::serialize::txt::trust_anchor::{self, Entry};
use std::fs;
use std::path::Path;
use std::time::SystemTime;

/// What a trust anchor file holds: for each zone, keys and digests of keys.
#[derive(Clone, Debug, Default)]
pub(crate) struct Anchors(Vec<(Name, Vec<Anchor>)>);

#[derive(Clone, Debug)]
enum Anchor {
    Key(DNSKEY),
    Digest(DS),
}

impl Anchors {
    pub(crate) fn read(path: &Path) -> Result<Self, LookupError> {
        let text = fs::read_to_string(path);
        let text = text.map_err(|error| LookupError::AnchorFile(path.to_owned(), error.into()))?;
        Self::parse(&text).map_err(|why| LookupError::Anchor(path.to_owned(), why))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut anchors = Self::default();
        for words in records(text)? {
            let [zone, kind, data @ ..] = &words[..] else {
                return Err(format!("{} is no record", words[0]));
            };
            let (zone, data) = (Name::from_ascii(zone), data.join(" "));
            let zone = zone.map_err(|error| error.to_string())?.to_lowercase();
            let anchor = match kind.to_ascii_uppercase().as_str() {
                "DNSKEY" => {
                    let entries = trust_anchor::Parser::new(format!(". IN DNSKEY {data}\n")).parse();
                    match entries.map_err(|error| error.to_string())?.first() {
                        Some(Entry::DNSKEY(key)) => Anchor::Key(key.data().clone()),
                        _ => return Err(format!("{data} is no DNSKEY record")),
                    }
                }
                "DS" => match RData::try_from_str(RecordType::DS, &data) {
                    Ok(RData::DNSSEC(DNSSECRData::DS(digest))) => Anchor::Digest(digest),
                    Ok(_) => return Err(format!("{data} is no DS record")),
                    Err(error) => return Err(error.to_string()),
                },
                other => return Err(format!("{other} is no trust anchor")),
            };
            match anchors.0.iter_mut().find(|(known, _)| *known == zone) {
                Some((_, known)) => known.push(anchor),
                None => anchors.0.push((zone, vec![anchor])),
            }
        }
        if anchors.0.is_empty() { Err("no DNSKEY and no DS record in it".into()) } else { Ok(anchors) }
    }

    /// The zones that have anchors.
    pub(crate) fn zones(&self) -> impl Iterator<Item = &Name> {
        self.0.iter().map(|(zone, _)| zone)
    }

    /// Takes the keys of a zone into `trusted` if an anchor vouches for one that has signed them all.
    pub(crate) fn vouch(
        &self,
        zone: &Name,
        answers: &[Record],
        trusted: &mut TrustAnchors,
    ) -> Result<(), String> {
        let of_zone = || answers.iter().filter(|record| record.name == *zone);
        let set: Vec<&Record> =
            of_zone().filter(|record| record.record_type() == RecordType::DNSKEY).collect();
        let keys: Vec<&DNSKEY> = set.iter().filter_map(|record| dnskey(record)).collect();
        let anchors = self.0.iter().filter(|(name, _)| name == zone).flat_map(|(_, anchors)| anchors);
        let anchors: Vec<&Anchor> = anchors.collect();
        let vouched =
            |key: &&&DNSKEY| key.zone_key() && !key.revoke() && anchors.iter().any(|a| a.is_for(zone, key));
        if keys.is_empty() {
            return Err(format!("{zone} has no keys"));
        }
        if !keys.iter().any(|key| vouched(&key)) {
            return Err(format!("no key of {zone} is the trust anchor's"));
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let mut signatures: Vec<&RRSIG> = of_zone().filter_map(rrsig).collect();
        signatures.retain(|signature| {
            keys.iter()
                .filter(vouched)
                .any(|key| key.verify_rrsig(zone, DNSClass::IN, signature, set.iter().copied()).is_ok())
        });
        if signatures.is_empty() {
            return Err(format!("no valid signature of the trust anchor's key over the keys of {zone}"));
        }
        if !signatures.iter().any(|signature| is_current(signature, now)) {
            // Devices without a clock of their own begin in 1970.
            let now = show_moment(now);
            return Err(format!(
                "the keys of {zone} are signed for another time, and this host's clock says {now}"
            ));
        }
        for key in keys.into_iter().filter(|key| key.zone_key() && !key.revoke()) {
            trusted.insert_with_name(key.public_key(), LowerName::new(zone));
        }
        Ok(())
    }
}

/// The records of a zone file as words: owner, type, data. TTL and class are left out, comments too, and parentheses
/// join lines (RFC 1035, section 5.1). Every record names its owner.
fn records(text: &str) -> Result<Vec<Vec<&str>>, String> {
    let mut records: Vec<Vec<&str>> = Vec::new();
    let mut open = false;
    for line in text.lines() {
        let line = line.split(';').next().unwrap_or_default();
        if line.starts_with([' ', '\t']) && !open && !line.trim().is_empty() {
            return Err(format!("{:?} does not say whose record it is", line.trim()));
        }
        let mut words: Vec<&str> =
            line.split([' ', '\t', '(', ')']).filter(|word| !word.is_empty()).collect();
        match records.last_mut().filter(|_| open) {
            Some(record) => record.append(&mut words),
            None if words.is_empty() => {}
            None => {
                let is_filler = |word: &str| word.eq_ignore_ascii_case("IN") || word.parse::<u32>().is_ok();
                let fillers = words[1..].iter().take_while(|word| is_filler(word)).count();
                words.drain(1..=fillers);
                records.push(words);
            }
        }
        open = line.rfind('(') > line.rfind(')') || open && !line.contains(')');
    }
    Ok(records)
}

impl Anchor {
    fn is_for(&self, zone: &Name, key: &DNSKEY) -> bool {
        match self {
            Self::Key(known) => {
                let (known, key) = (known.public_key(), key.public_key());
                known.public_bytes() == key.public_bytes() && known.algorithm() == key.algorithm()
            }
            Self::Digest(digest) => {
                digest.algorithm() == key.public_key().algorithm()
                    && digest.covers(zone, key).unwrap_or(false)
            }
        }
    }
}

fn dnskey(record: &Record) -> Option<&DNSKEY> {
    match &record.data {
        RData::DNSSEC(DNSSECRData::DNSKEY(key)) => Some(key),
        _ => None,
    }
}

fn rrsig(record: &Record) -> Option<&RRSIG> {
    match &record.data {
        RData::DNSSEC(DNSSECRData::RRSIG(signature))
            if signature.input().type_covered == RecordType::DNSKEY =>
        {
            Some(signature)
        }
        _ => None,
    }
}

/// Times of signatures are 32 bits of seconds and wrap (RFC 4034, section 3.1.5).
fn is_current(signature: &RRSIG, now: u64) -> bool {
    let since = |time: u32| (now as u32).wrapping_sub(time) as i32;
    let input = signature.input();
    since(input.sig_inception.get()) >= 0 && since(input.sig_expiration.get()) <= 0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys of the root, of 2017 and 2024, as IANA publishes their digests.
    const ROOT: &str = "
; the root
.  172800 IN DS 20326 8 2 E06D44B80B8F1D39A95C0B0D7C65D08458E880409BBC683457104237C7F8EC8D
. IN DS 38696 8 2 ( 683D2D0ACB8C9B712A1948B27F741219298D0A450D612C483AF444A4C0FB2B16 ) ; the newer one
";
    const KEY: &str = "Example.test. DNSKEY 257 3 13 mdsswUyr3DPW132mOi8V9xESWE8jTo0dxCjjnopKl+GqJxpVXckHAeF+KkxLbxIL\
        fDLUT0rAK9iUzy1L53eKGQ==";

    #[test]
    fn what_keymgr_dig_and_iana_print() {
        let anchors = Anchors::parse(&format!("{ROOT}{KEY}\n")).unwrap();
        assert_eq!(anchors.zones().map(ToString::to_string).collect::<Vec<_>>(), [".", "example.test."]);
        assert_eq!((anchors.0[0].1.len(), anchors.0[1].1.len()), (2, 1));
        let folded =
            KEY.replace("DNSKEY", "3600\tIN\tDNSKEY").replace(" mdss", " (\n\tmdss\n") + " )\n" + ROOT;
        assert_eq!(Anchors::parse(&folded).unwrap().0.len(), 2);
    }

    #[test]
    fn what_is_no_trust_anchor() {
        for (text, why) in [
            ("", "no DNSKEY"),
            ("; nothing\n\n", "no DNSKEY"),
            ("example.test. A 192.0.2.1", "A is no trust anchor"),
            ("$INCLUDE /etc/passwd", "$INCLUDE"),
            ("  DS 1 2 3 4", "whose"),
            ("example.test.", "no record"),
            ("example.test. DS 1 8 2 xyz", ""),
            ("example.test. DNSKEY 257 3 13 %%%", ""),
            ("example.test. DNSKEY", ""),
        ] {
            let error = Anchors::parse(text).map(|_| ()).unwrap_err();
            assert!(error.contains(why), "{text:?}: {error}");
        }
    }
}
