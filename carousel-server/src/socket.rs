//! The sending socket: connected to a group, so that it hears nothing and no tool lists it as listening.
//!
//! One `sendmmsg` per burst, and in it trains: messages that the kernel, or the network card, cuts into packets (UDP
//! segmentation offload). The record of every packet goes out straight from the mapped bundle.

#![allow(unsafe_code)]

use carousel_proto::wire::PREFIX_LEN;
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use std::fmt::{self, Display, Formatter};
use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::AsRawFd;

/// IPV6_MTU_DISCOVER value of the Linux kernel (include/uapi/linux/in6.h): go by the interface's MTU alone. A
/// forged "packet too big" then changes nothing, and a packet that does not fit is an error, never fragments.
const IPV6_PMTUDISC_INTERFACE: libc::c_int = 4;

/// Most packets in a train: what every kernel that knows trains takes.
const TRAIN_PACKETS: usize = 64;
/// Most bytes in a train, UDP header left out: an IPv6 packet has 16 bits for its length, and the kernel makes a train
/// from one.
const TRAIN_BYTES: usize = 65_507;

/// Where and how a channel sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub group: Ipv6Addr,
    pub port: u16,
    /// By name: an interface that was deleted and made anew has another number.
    pub interface: String,
    pub source: Option<Ipv6Addr>,
    pub hops: u8,
    pub dscp: u8,
}

impl Target {
    /// Whether packets to both arrive in the same place.
    pub fn is_same_place(&self, other: &Self) -> bool {
        (self.group, self.port, &self.interface) == (other.group, other.port, &other.interface)
    }
}

impl Display for Target {
    /// For people: `[ff3e::8000:1]:5004 on eth0`.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "[{}]:{} on {}", self.group, self.port, self.interface)
    }
}

/// One packet: its header's first part, and the record that follows.
pub struct Outgoing<'a> {
    pub prefix: [u8; PREFIX_LEN],
    pub record: &'a [u8],
}

/// A socket that only sends.
pub struct Sender {
    socket: Socket,
    /// Source address and interface, as a control message, if one was asked for. Binding would do the same,
    /// but a program that never binds can be forbidden to.
    source: Option<SourceControl>,
    /// Length of the packets into which the kernel cuts what it gets from here; 0 if it does not.
    cut: usize,
    iovecs: Vec<[libc::iovec; 2]>,
    messages: Vec<libc::mmsghdr>,
}

#[repr(C, align(8))]
struct SourceControl {
    header: libc::cmsghdr,
    info: libc::in6_pktinfo,
}

impl Sender {
    pub fn open(target: &Target) -> io::Result<Self> {
        let interface = nix::net::if_::if_nametoindex(target.interface.as_str())?;
        let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_multicast_if_v6(interface)?;
        socket.set_multicast_hops_v6(u32::from(target.hops))?;
        socket.set_tclass_v6(u32::from(target.dscp) << 2)?;
        set_mtu_discovery(&socket)?;
        // Room for a few bursts; a smaller limit of the system only means more ENOBUFS, which is survived.
        let _ = socket.set_send_buffer_size(1 << 20);
        socket.connect(&SocketAddrV6::new(target.group, target.port, 0, interface).into())?;
        let source = target.source.map(|address| SourceControl {
            header: libc::cmsghdr {
                // SAFETY: CMSG_LEN only computes.
                cmsg_len: unsafe { libc::CMSG_LEN(size_of::<libc::in6_pktinfo>() as u32) } as usize,
                cmsg_level: libc::IPPROTO_IPV6,
                cmsg_type: libc::IPV6_PKTINFO,
            },
            info: libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr { s6_addr: address.octets() },
                ipi6_ifindex: interface,
            },
        });
        Ok(Self { socket, source, cut: 0, iovecs: Vec::new(), messages: Vec::new() })
    }

    /// The address that packets come from: what clients have to name as their source.
    pub fn source(&self) -> Option<Ipv6Addr> {
        let asked_for = self.source.as_ref().map(|s| Ipv6Addr::from(s.info.ipi6_addr.s6_addr));
        asked_for.or_else(|| Some(*self.socket.local_addr().ok()?.as_socket_ipv6()?.ip()))
    }

    /// Sends a burst of packets of equal length, in trains or each by itself; how many of them the kernel took. At
    /// least one, or an error.
    pub fn send(&mut self, burst: &[Outgoing<'_>], trains: bool) -> io::Result<usize> {
        let len = burst.first().map_or(0, |packet| PREFIX_LEN + packet.record.len());
        let train = if trains { (TRAIN_BYTES / len.max(1)).min(TRAIN_PACKETS) } else { 1 };
        let train = train.min(burst.len()).max(1);
        self.cut_at(if train > 1 { len } else { 0 })?;
        self.iovecs.clear();
        self.messages.clear();
        self.iovecs.extend(burst.iter().map(|packet| {
            // The kernel only reads from these, whatever their type says.
            let iovec = |bytes: &[u8]| libc::iovec {
                iov_base: bytes.as_ptr().cast_mut().cast(),
                iov_len: bytes.len(),
            };
            [iovec(&packet.prefix), iovec(packet.record)]
        }));
        let control: *mut libc::c_void =
            self.source.as_mut().map_or(std::ptr::null_mut(), |s| std::ptr::from_mut(s).cast());
        let control_len = if control.is_null() { 0 } else { size_of::<SourceControl>() };
        for iovecs in self.iovecs.chunks_mut(train) {
            let iovecs = iovecs.as_flattened_mut();
            // SAFETY: mmsghdr is plain data for which all zeros is a valid value.
            let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
            message.msg_hdr.msg_iov = iovecs.as_mut_ptr();
            message.msg_hdr.msg_iovlen = iovecs.len();
            message.msg_hdr.msg_control = control;
            message.msg_hdr.msg_controllen = control_len;
            self.messages.push(message);
        }
        // SAFETY: the messages point to iovecs and those to `burst`, all of which outlive the call; lengths are
        // those of the slices.
        let sent = unsafe {
            libc::sendmmsg(self.socket.as_raw_fd(), self.messages.as_mut_ptr(), self.messages.len() as u32, 0)
        };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((sent as usize * train).min(burst.len()))
    }

    /// Whether this kernel makes packets of trains.
    pub fn has_trains(&mut self) -> bool {
        self.cut_at(1232).and_then(|()| self.cut_at(0)).is_ok()
    }

    /// Lets the kernel cut messages into packets of this length, or at 0 leave them as they are. Kernels before 4.18
    /// cannot, and say so.
    fn cut_at(&mut self, len: usize) -> io::Result<()> {
        if self.cut != len {
            setsockopt(&self.socket, sockopt::UdpGsoSegment, &(len as libc::c_int))?;
            self.cut = len;
        }
        Ok(())
    }
}

fn set_mtu_discovery(socket: &Socket) -> io::Result<()> {
    // SAFETY: the option takes an int, and its address and size are given.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            std::ptr::from_ref(&IPV6_PMTUDISC_INTERFACE).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets timers of this thread be as exact as the machine allows (the default rounds to 50 µs).
pub fn sharpen_timers() {
    // SAFETY: PR_SET_TIMERSLACK takes one number and touches nothing else.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
}
