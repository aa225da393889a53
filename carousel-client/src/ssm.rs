//! Joining a source-specific group (RFC 3678 section 5, RFC 4607) and receiving from it in batches.
//!
//! The socket is bound to the group and hears only its own memberships (IPV6_MULTICAST_ALL off): otherwise
//! whatever another program on this host has joined, wrong sources included, would come in here too.

#![allow(unsafe_code)]

use nix::libc;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::AsRawFd;
use std::time::Duration;

/// Room for a packet of an ordinary link …
const PACKET_LEN: usize = 2048;
/// … and of a 9,000-byte link, taken when the first one that long has come.
const JUMBO_LEN: usize = 9216;
/// Packets per batch, that is per system call.
pub const BATCH_PACKETS: usize = 16;
/// Bytes for control messages of one packet: SO_RXQ_OVFL takes 24.
const CONTROL_LEN: usize = 64;
/// How often a silent socket lets its thread look around.
const WAKE: Duration = Duration::from_millis(200);

/// A socket on one group and port. It hears only what it has joined. Dropping it leaves everything; the kernel does
/// the same when the process dies.
pub struct Subscription {
    socket: Socket,
    group: Ipv6Addr,
    interface: u32,
    /// Receive buffer the system granted, in bytes as asked for.
    pub granted: usize,
}

/// Packets of one system call and where they came from.
pub struct Batch {
    bytes: Vec<u8>,
    /// Room for each packet.
    stride: usize,
    packets: Vec<(usize, Ipv6Addr)>,
    /// Packets that the socket had dropped before they could be read, when this batch was.
    pub overflowed: u32,
    /// Which place of [`crate::receive::Reception`] it came from.
    pub place: usize,
}

impl Subscription {
    /// Opens a socket that has joined nothing yet. `rcvbuf` is tried with privilege first, then without.
    pub fn open(group: Ipv6Addr, port: u16, interface: u32, rcvbuf: usize) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_reuse_address(true)?; // several clients on one host
        socket.set_only_v6(true)?;
        socket.set_multicast_all_v6(false)?;
        set_option(&socket, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, &1i32)?;
        let granted = grow_buffer(&socket, rcvbuf)?;
        socket.set_read_timeout(Some(WAKE))?;
        socket.bind(&SocketAddrV6::new(group, port, 0, interface).into())?;
        Ok(Self { socket, group, interface, granted })
    }

    /// Joins: one source (MLDv2 INCLUDE), or any.
    pub fn join(&self, source: Option<Ipv6Addr>) -> io::Result<()> {
        match source {
            Some(source) => self.change(libc::MCAST_JOIN_SOURCE_GROUP, source),
            None => self.socket.join_multicast_v6(&self.group, self.interface),
        }
    }

    /// Leaves what was joined.
    pub fn leave(&self, source: Option<Ipv6Addr>) -> io::Result<()> {
        match source {
            Some(source) => self.change(libc::MCAST_LEAVE_SOURCE_GROUP, source),
            None => self.socket.leave_multicast_v6(&self.group, self.interface),
        }
    }

    fn change(&self, option: libc::c_int, source: Ipv6Addr) -> io::Result<()> {
        let request = libc::group_source_req {
            gsr_interface: self.interface,
            gsr_group: storage(self.group),
            gsr_source: storage(source),
        };
        set_option(&self.socket, libc::IPPROTO_IPV6, option, &request)
    }

    /// Lets the kernel drop each packet with this probability, by a classic BPF filter on this socket alone.
    pub fn impair(&self, percent: u8) -> io::Result<()> {
        let threshold = (u64::from(u32::MAX) * u64::from(percent) / 100) as u32;
        let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
        // SKF_AD_OFF + SKF_AD_RANDOM (linux/filter.h): load a random number instead of packet bytes.
        let random = (-0x1000i32 + 56) as u32;
        let program = [
            step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, random),
            step(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 1, 0, threshold),
            step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
            step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
        ];
        let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
        set_option(&self.socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
    }

    /// Fills a batch; false if nothing came within a fifth of a second.
    pub fn receive(&self, batch: &mut Batch) -> io::Result<bool> {
        batch.packets.clear();
        // SAFETY: these are plain data for which all zeros is a valid value.
        let mut names: [libc::sockaddr_in6; BATCH_PACKETS] = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        let mut messages: [libc::mmsghdr; BATCH_PACKETS] = unsafe { std::mem::zeroed() };
        let mut controls = [Control([0; CONTROL_LEN]); BATCH_PACKETS];
        let mut iovecs = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BATCH_PACKETS];
        for (index, packet) in batch.bytes.chunks_exact_mut(batch.stride).enumerate() {
            iovecs[index] = libc::iovec { iov_base: packet.as_mut_ptr().cast(), iov_len: batch.stride };
            let header = &mut messages[index].msg_hdr;
            header.msg_name = (&raw mut names[index]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_in6>() as u32;
            header.msg_iov = &raw mut iovecs[index];
            header.msg_iovlen = 1;
            header.msg_control = (&raw mut controls[index]).cast();
            header.msg_controllen = CONTROL_LEN;
        }
        // SAFETY: every message points to memory of the stated length that lives until the call returns: names,
        // controls and iovecs on this stack, packets in the batch, which is borrowed mutably.
        let count = unsafe {
            libc::recvmmsg(
                self.socket.as_raw_fd(),
                messages.as_mut_ptr(),
                BATCH_PACKETS as u32,
                libc::MSG_WAITFORONE,
                std::ptr::null_mut(),
            )
        };
        if count < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(false),
                _ => Err(error),
            };
        }
        let mut cut = false;
        for (message, name) in messages.iter().zip(&names).take(count as usize) {
            let source = Ipv6Addr::from(name.sin6_addr.s6_addr);
            batch.packets.push((message.msg_len as usize, source));
            cut |= message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
            if let Some(overflowed) = overflow(&message.msg_hdr) {
                batch.overflowed = overflowed;
            }
        }
        if cut && batch.stride < JUMBO_LEN {
            // These packets are lost, like any; the next ones of this batch will fit.
            *batch =
                Batch { place: batch.place, overflowed: batch.overflowed, ..Batch::with_stride(JUMBO_LEN) };
            return Ok(false);
        }
        Ok(count > 0)
    }
}

/// Room for control messages, aligned as their headers need it.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_LEN]);

impl Batch {
    pub fn new() -> Self {
        Self::with_stride(PACKET_LEN)
    }

    fn with_stride(stride: usize) -> Self {
        let bytes = vec![0; BATCH_PACKETS * stride];
        Self { bytes, stride, packets: Vec::with_capacity(BATCH_PACKETS), overflowed: 0, place: 0 }
    }

    /// The packets, each with its source.
    pub fn packets(&self) -> impl Iterator<Item = (&[u8], Ipv6Addr)> {
        self.bytes
            .chunks_exact(self.stride)
            .zip(&self.packets)
            .map(|(bytes, (len, source))| (&bytes[..(*len).min(bytes.len())], *source))
    }
}

fn overflow(header: &libc::msghdr) -> Option<u32> {
    // SAFETY: the kernel filled the control buffer that `header` points to, which still lives in the caller.
    let mut control = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !control.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give null or a whole header within the buffer; SO_RXQ_OVFL's
        // data is a u32, read unaligned.
        unsafe {
            if (*control).cmsg_level == libc::SOL_SOCKET && (*control).cmsg_type == libc::SO_RXQ_OVFL {
                return Some(libc::CMSG_DATA(control).cast::<u32>().read_unaligned());
            }
            control = libc::CMSG_NXTHDR(header, control);
        }
    }
    None
}

fn storage(address: Ipv6Addr) -> libc::sockaddr_storage {
    let address = SockAddr::from(SocketAddrV6::new(address, 0, 0, 0));
    // SAFETY: sockaddr_storage is plain data for which all zeros is a valid value.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    // SAFETY: `address` holds a sockaddr_in6 of `len` bytes, fewer than a sockaddr_storage.
    unsafe {
        std::ptr::copy_nonoverlapping(
            address.as_ptr().cast::<u8>(),
            (&raw mut storage).cast(),
            address.len() as usize,
        );
    }
    storage
}

/// The receive buffer that the system grants, in the bytes it was asked for (the kernel reports twice that).
fn grow_buffer(socket: &Socket, wanted: usize) -> io::Result<usize> {
    let wanted = i32::try_from(wanted / 2).unwrap_or(i32::MAX / 2) * 2;
    if set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &wanted).is_err() {
        set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUF, &wanted)?;
    }
    Ok(socket.recv_buffer_size()? / 2)
}

fn set_option<T>(socket: &Socket, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the callers pass the type that the option is defined with; address and size are its own.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
