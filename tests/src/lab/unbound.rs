//! A resolver in a host that validates: unbound, for the zones of a nameserver in the lab.

use super::host::Host;
use super::process::{Running, until};
use super::{Lab, have, skip};
use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::time::Duration;

/// It takes some tenths of a second; a busy machine takes longer.
const LIMIT: Duration = Duration::from_secs(20);
/// A question for the SOA of the root, which it refuses or fails, but answers.
const QUESTION: [u8; 17] = [0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 6, 0, 1];

/// A running unbound on port 53 of all addresses of its host. Dropping it stops it.
pub struct Unbound {
    _server: Running,
}

impl Unbound {
    /// Whether unbound is installed; otherwise says that the test is skipped.
    pub fn is_here(lab: &Lab) -> bool {
        let here = have("unbound");
        if !here {
            skip(lab.name(), "the program unbound is missing");
        }
        here
    }

    /// Starts it, and returns when it answers. It asks `nameserver` about `zone`, and believes only what is signed
    /// up to `trust_anchor`.
    pub fn start(lab: &Lab, host: &Host, zone: &str, nameserver: &str, trust_anchor: &Path) -> Self {
        let dir = lab.fresh_dir("unbound");
        let file = dir.join("unbound.conf");
        // The domain test. is one that unbound otherwise denies by itself, and lo is a host like any other here.
        let text = format!(
            "server:
  directory: {dir}
  pidfile: {dir}/unbound.pid
  chroot: \"\"
  username: \"\"
  do-daemonize: no
  use-syslog: no
  verbosity: 1
  val-log-level: 2
  num-threads: 1
  interface: ::0
  do-ip4: no
  access-control: ::0/0 allow
  do-not-query-localhost: no
  trust-anchor-file: {anchor}
  local-zone: test. nodefault
stub-zone:
  name: {zone}
  stub-addr: {nameserver}
remote-control:
  control-enable: no
",
            dir = dir.display(),
            anchor = trust_anchor.display(),
        );
        fs::write(&file, text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let server = host.spawn(&["unbound".as_ref(), "-d".as_ref(), "-c".as_ref(), file.as_os_str()]);
        let socket = host
            .within(|| {
                let socket = UdpSocket::bind("[::1]:0")?;
                socket.connect("[::1]:53")?;
                socket.set_read_timeout(Some(Duration::from_millis(50)))?;
                std::io::Result::Ok(socket)
            })
            .unwrap_or_else(|e| panic!("host {}: no socket to ask unbound: {e}", host.name()));
        until("unbound to answer", LIMIT, || {
            assert!(server.is_alive(), "{server}");
            let _ = socket.send(&QUESTION);
            socket.recv(&mut [0; 512]).is_ok()
        });
        Self { _server: server }
    }
}
