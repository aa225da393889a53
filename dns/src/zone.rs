//! Services as a zone-file fragment (RFC 1035, section 5) that knot, BIND and NSD load.

use crate::name::Name;
use crate::records::{MAX_STRING, Remarks, Service};
use std::fmt::Write;
use std::net::Ipv6Addr;

/// Why there is no fragment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ZoneError(String);

/// The records of these services: PTR for those with an instance name, SRV, TXT, and AAAA for what hosts of the
/// domain are known to have. The names of the services must be in `origin`, which the fragment's first line states,
/// so that it can stand anywhere in the zone of that domain or of a parent.
pub fn emit_zone(services: &[Service], origin: &Name, ttl: u32) -> Result<String, ZoneError> {
    let mut lines = Lines { origin, ttl, text: format!("$ORIGIN {}\n", origin.absolute()) };
    let mut listed: Vec<Name> = Vec::new();
    let mut hosts: Vec<(&Name, Vec<Ipv6Addr>)> = Vec::new();
    for service in services {
        check(service, origin)?;
        let name = &service.name;
        if let (Some(domain), Some(_)) = (name.domain(), name.instance()) {
            if let (Some(list), false) = (Name::service_list(&domain), listed.contains(&domain)) {
                let browse = Name::from_labels(
                    [&b"_services"[..], b"_dns-sd", b"_udp"].into_iter().chain(domain.labels()),
                );
                if let Some(browse) = browse {
                    lines.add(&browse, "PTR", &list.in_zone(origin));
                }
            }
            if let Some(list) = Name::service_list(&domain) {
                lines.add(&list, "PTR", &name.in_zone(origin));
            }
            listed.push(domain);
        }
        for source in &service.sources {
            let target = source.host.in_zone(origin);
            lines.add(
                name,
                "SRV",
                &format!("{} {} {} {target}", source.priority, source.weight, source.port),
            );
            match hosts.iter_mut().find(|(host, _)| **host == source.host) {
                Some((_, known)) => known.extend(&source.addresses),
                None => hosts.push((&source.host, source.addresses.clone())),
            }
        }
        lines.add(name, "TXT", &service.txt().iter().map(|s| quoted(s)).collect::<Vec<_>>().join(" "));
    }
    for (host, mut addresses) in hosts {
        addresses.sort();
        addresses.dedup();
        if !host.is_within(origin) {
            lines.remark(host, "is in another zone, and so is its AAAA record");
        } else if addresses.is_empty() {
            lines.remark(host, "needs its AAAA record, if it has none yet");
        } else {
            addresses.iter().for_each(|address| lines.add(host, "AAAA", &address.to_string()));
        }
    }
    Ok(lines.text)
}

struct Lines<'a> {
    origin: &'a Name,
    ttl: u32,
    text: String,
}

impl Lines<'_> {
    fn add(&mut self, owner: &Name, kind: &str, data: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "{:<32} {} IN {kind:<4} {data}", owner.in_zone(self.origin), self.ttl);
    }

    fn remark(&mut self, host: &Name, what: &str) {
        let _ = writeln!(self.text, "; {} {what}", host.in_zone(self.origin));
    }
}

/// What a client would complain about must not get into a zone.
fn check(service: &Service, origin: &Name) -> Result<(), ZoneError> {
    let name = &service.name;
    if !name.is_within(origin) {
        return Err(ZoneError(format!("{name} is not in {origin}")));
    }
    if let Some(long) = service.txt().iter().find(|s| s.len() > MAX_STRING) {
        let start = String::from_utf8_lossy(&long[..long.len().min(40)]).into_owned();
        return Err(ZoneError(format!("{name}: {start}… is too long: a TXT string has {MAX_STRING} bytes")));
    }
    let mut remarks = Remarks::default();
    let parsed = Service::parse(name, &service.srv(), &[service.txt()], &mut remarks);
    match (parsed, remarks.lines().first()) {
        (Err(error), _) => Err(ZoneError(format!("{name}: {error}"))),
        (_, Some(remark)) => Err(ZoneError(remark.clone())),
        _ => Ok(()),
    }
}

/// A character-string in quotes: everything odd escaped.
fn quoted(string: &[u8]) -> String {
    let mut text = String::from("\"");
    for &byte in string {
        match byte {
            b'"' | b'\\' => text.extend(['\\', char::from(byte)]),
            b' '..=b'~' => text.push(char::from(byte)),
            _ => {
                let _ = write!(text, "\\{byte:03}"); // writing to a String cannot fail
            }
        }
    }
    text + "\""
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::{Channel, Ladder, Source, derived_group};

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn service(instance: &str, hosts: &[(&str, u16, &str)]) -> Service {
        let name: Name = name(&format!("{instance}._carousel._udp.example.net"));
        let source = |(host, priority, address): &(&str, u16, &str)| Source {
            host: host.parse().unwrap(),
            addresses: address.parse().into_iter().collect(),
            port: 5004,
            priority: *priority,
            weight: 10,
        };
        Service {
            sources: hosts.iter().map(source).collect(),
            channels: vec![Channel { group: derived_group(&name, 0), rate: Some(1_000_001) }],
            ladder: Ladder::Separate,
            seq: Some(42),
            digest_prefix: None,
            key_id: None,
            url: Some(r#"https://example.net/a"b\c;d"#.into()),
            name,
        }
    }

    /// Everything that needs an escape somewhere.
    fn fragment() -> String {
        let services = [
            service(
                "gateway-fw",
                &[("s1.example.net", 0, "2001:db8:1::a"), ("s9.example.org", 10, "2001:db8::9")],
            ),
            service(
                r#"Gateway \"1\.2\"; (été) @ $5"#,
                &[("s1.example.net", 0, "2001:db8:1::a"), ("s2.example.net", 1, "")],
            ),
        ];
        emit_zone(&services, &name("example.net"), 300).unwrap()
    }

    #[test]
    fn the_fragment() {
        let text = fragment();
        let words: Vec<Vec<&str>> =
            text.lines().map(|line| line.split_ascii_whitespace().collect()).collect();
        let lines: Vec<String> = words.iter().map(|words| words.join(" ")).collect();
        let group = derived_group(&name("gateway-fw._carousel._udp.example.net"), 0);
        let odd = r#"Gateway\032\"1\.2\"\;\032\(\195\169t\195\169\)\032\@\032\$5._carousel._udp"#;
        let odd_group = derived_group(&name(r#"Gateway "1\.2"; (été) @ $5._carousel._udp.example.net"#), 0);
        let rest = r#""r=1001" "seq=42" "u=https://example.net/a\"b\\c;d""#;
        assert_eq!(
            lines,
            [
                "$ORIGIN example.net.",
                "_services._dns-sd._udp 300 IN PTR _carousel._udp",
                "_carousel._udp 300 IN PTR gateway-fw._carousel._udp",
                "gateway-fw._carousel._udp 300 IN SRV 0 10 5004 s1",
                "gateway-fw._carousel._udp 300 IN SRV 10 10 5004 s9.example.org.",
                &format!(r#"gateway-fw._carousel._udp 300 IN TXT "txtvers=1" "g={group}" {rest}"#),
                &format!("_carousel._udp 300 IN PTR {odd}"),
                &format!("{odd} 300 IN SRV 0 10 5004 s1"),
                &format!("{odd} 300 IN SRV 1 10 5004 s2"),
                &format!(r#"{odd} 300 IN TXT "txtvers=1" "g={odd_group}" {rest}"#),
                "s1 300 IN AAAA 2001:db8:1::a",
                "; s9.example.org. is in another zone, and so is its AAAA record",
                "; s2 needs its AAAA record, if it has none yet",
            ]
        );
    }

    #[test]
    fn what_must_not_get_into_a_zone() {
        let good = service("x", &[("s", 0, "")]);
        let refused = |change: fn(&mut Service)| {
            let mut bad = good.clone();
            change(&mut bad);
            emit_zone(&[bad], &name("example.net"), 60).unwrap_err().to_string()
        };
        assert!(refused(|s| s.url = Some("x".repeat(254))).contains("too long"));
        assert!(refused(|s| s.url = Some("gopher://x".into())).contains("malformed"));
        assert!(
            refused(|s| s.channels[0].group = "2001:db8::1".parse().unwrap()).contains("no IPv6 multicast")
        );
        assert!(refused(|s| s.sources[0].port = 0).contains("no SRV"));
        assert!(refused(|s| s.sources.clear()).contains("no SRV"));
        assert!(refused(|s| s.name = "x.example.org".parse().unwrap()).contains("not in"));
        assert!(refused(|s| s.channels = vec![s.channels[0]; 2]).contains("twice"));
    }
}
