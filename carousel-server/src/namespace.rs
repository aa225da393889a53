//! A private network for the demonstration: an own user and network namespace whose loopback carries
//! source-specific multicast. Needs no root; nothing leaves the process and its children.

#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use std::fs;
use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsRawFd, OwnedFd};

// Numbers of linux/rtnetlink.h, linux/netlink.h and linux/if.h.
const RTM_NEWLINK: u16 = 16;
const RTM_NEWROUTE: u16 = 24;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
const NETLINK_HEADER_LEN: usize = 16;
const AF_INET6: u8 = 10;
const IFF_UP: u32 = 1;
const RT_TABLE_LOCAL: u8 = 255;
const RTPROT_STATIC: u8 = 4;
const RTN_LOCAL: u8 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
/// Index of `lo` in every new network namespace.
const LOOPBACK: u32 = 1;

/// Moves this process (which must have one thread only) into a private network. If that fails, nothing has changed.
pub fn enter() -> io::Result<()> {
    // A child goes first, for there is no way back: some systems give everybody the namespaces, and then no right to do
    // anything in them (Ubuntu's AppArmor).
    // SAFETY: there are no other threads, so the child may do whatever we may.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => match wait(child)? {
            0 => move_in(),
            code => Err(io::Error::from_raw_os_error(code)),
        },
        ForkResult::Child => {
            let refused = |error: io::Error| error.raw_os_error().unwrap_or(Errno::EPERM as i32);
            std::process::exit(move_in().map_or_else(refused, |()| 0))
        }
    }
}

/// A child's exit code.
fn wait(child: Pid) -> io::Result<i32> {
    loop {
        match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(code),
            Ok(WaitStatus::Signaled(..)) => return Ok(Errno::EPERM as i32), // by a filter of system calls
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn move_in() -> io::Result<()> {
    let (user, group) = (nix::unistd::getuid(), nix::unistd::getgid());
    match unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET) {
        Ok(()) => {
            fs::write("/proc/self/setgroups", "deny")?;
            fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
            fs::write("/proc/self/gid_map", format!("{group} {group} 1"))?;
        }
        // Where user namespaces are forbidden, root can still have a network of its own.
        Err(_) if user.is_root() => unshare(CloneFlags::CLONE_NEWNET)?,
        Err(error) => return Err(error.into()),
    }
    let netlink =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    request(&netlink, RTM_NEWLINK, 0, &interface_up(LOOPBACK))?;
    // Loopback has no multicast route of its own; "local" makes what is sent come in again.
    request(&netlink, RTM_NEWROUTE, NLM_F_CREATE, &multicast_route(LOOPBACK))
}

/// struct ifinfomsg: family, padding, type, index, flags, change.
fn interface_up(index: u32) -> Vec<u8> {
    [&[0; 4][..], &index.to_ne_bytes(), &IFF_UP.to_ne_bytes(), &IFF_UP.to_ne_bytes()].concat()
}

/// struct rtmsg: family, destination and source length, type of service, table, protocol, scope, type, flags;
/// then the destination ff00::/8 and the interface as attributes.
fn multicast_route(index: u32) -> Vec<u8> {
    let mut body = vec![AF_INET6, 8, 0, 0, RT_TABLE_LOCAL, RTPROT_STATIC, 0, RTN_LOCAL, 0, 0, 0, 0];
    let destination = Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0).octets();
    for (kind, value) in [(RTA_DST, &destination[..]), (RTA_OIF, &index.to_ne_bytes())] {
        body.extend_from_slice(&(4 + value.len() as u16).to_ne_bytes());
        body.extend_from_slice(&kind.to_ne_bytes());
        body.extend_from_slice(value);
    }
    body
}

/// Sends one request and waits for the kernel's word on it.
fn request(netlink: &OwnedFd, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    let mut message = Vec::with_capacity(NETLINK_HEADER_LEN + body.len());
    message.extend_from_slice(&((NETLINK_HEADER_LEN + body.len()) as u32).to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&(NLM_F_REQUEST | NLM_F_ACK | flags).to_ne_bytes());
    message.extend_from_slice(&[0; 8]); // sequence and port: one question, one answer
    message.extend_from_slice(body);
    send(netlink.as_raw_fd(), &message, MsgFlags::empty())?;
    let mut answer = [0; 1024];
    let len = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let word =
        |at: usize| answer[..len].get(at..at + 4).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes);
    match (u16::from_ne_bytes([answer[4], answer[5]]), word(NETLINK_HEADER_LEN)) {
        (NLMSG_ERROR, Some(0)) => Ok(()),
        (NLMSG_ERROR, Some(code)) => Err(Errno::from_raw(-code).into()),
        _ => Err(io::Error::other("the kernel gave no answer over netlink")),
    }
}
