//! A socket that has joined (S,G) as a client's has, for when a whole client would be too much.
#![allow(unsafe_code)]

use super::Host;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::AsRawFd;

/// Joins (source, group) on an interface of a host. The socket hears nothing else, and any number of them may share
/// the port.
pub fn join(host: &Host, interface: &str, source: Ipv6Addr, group: SocketAddrV6) -> UdpSocket {
    let made = host.within(|| {
        let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_reuse_address(true)?;
        // Else it would also hear what any other socket of its host has joined.
        socket.set_multicast_all_v6(false)?;
        socket.bind(&SocketAddr::from(group).into())?;
        join_source(&socket, nix::net::if_::if_nametoindex(interface)?, source, group)?;
        Ok::<_, io::Error>(socket.into())
    });
    made.unwrap_or_else(|e| {
        panic!("host {}: cannot join ({source}, {group}) on {interface}: {e}", host.name())
    })
}

/// RFC 3678, section 5.1; the address family is in the addresses.
fn join_source(socket: &Socket, interface: u32, source: Ipv6Addr, group: SocketAddrV6) -> io::Result<()> {
    #[repr(C)]
    struct Request {
        interface: u32,
        group: libc::sockaddr_storage,
        source: libc::sockaddr_storage,
    }
    let storage = |address: SocketAddr| {
        let storage = SockAddr::from(address).as_storage();
        // SAFETY: socket2's storage is a transparent copy of the system's.
        unsafe { std::mem::transmute_copy::<_, libc::sockaddr_storage>(&storage) }
    };
    let request =
        Request { interface, group: storage(group.into()), source: storage(SocketAddr::from((source, 0))) };
    // SAFETY: the pointer and size describe one live value of the type this option takes.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IPV6,
            libc::MCAST_JOIN_SOURCE_GROUP,
            (&raw const request).cast(),
            size_of::<Request>() as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
