//! Joining a source-specific group (RFC 3678 section 5, RFC 4607) and receiving from it in batches.
//!
//! The socket is bound to the group and hears only its own memberships (IPV6_MULTICAST_ALL off): otherwise
//! whatever another program on this host has joined, wrong sources included, would come in here too.

#![allow(unsafe_code)]

use nix::libc;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Messages per system call. More would save little, for a message costs several times what the call does, and they
/// are memory.
const BATCH_MESSAGES: usize = 4;
/// Room for a message. It is a packet, or a train of packets of one sender that the kernel has put together. The
/// memory behind the longest message that ever came is never touched, so packets alone cost a page for each message.
const MESSAGE_LEN: usize = 1 << 16;
/// Bytes for control messages of one message: SO_RXQ_OVFL and UDP_GRO take 24 each.
const CONTROL_LEN: usize = 64;

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
    messages: Vec<Message>,
    /// Messages that the socket had dropped before they could be read, when this batch was.
    pub overflowed: u32,
}

/// One or more packets of one source, end to end.
struct Message {
    len: usize,
    /// Length of each packet; the last one may be shorter.
    segment: usize,
    source: Ipv6Addr,
}

impl Subscription {
    /// Opens a socket that has joined nothing yet and never blocks. `rcvbuf` is tried with privilege first, then
    /// without.
    pub fn open(group: Ipv6Addr, port: u16, interface: u32, rcvbuf: usize) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_reuse_address(true)?; // several clients on one host
        socket.set_only_v6(true)?;
        // A kernel that cannot (before 4.20) lets in what others have joined until we have joined; then it filters.
        let _ = socket.set_multicast_all_v6(false);
        set_option(&socket, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, &1i32)?;
        let granted = grow_buffer(&socket, rcvbuf)?;
        socket.set_nonblocking(true)?;
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

    /// Lets the kernel hand over trains of packets, with the work of one, where it finds such.
    pub fn take_trains(&self) {
        // A kernel that cannot (before 5.0) hands over packets.
        let _ = set_option(&self.socket, libc::SOL_UDP, libc::UDP_GRO, &1i32);
    }

    /// Lets the kernel drop each packet with this probability, by a classic BPF filter on this socket alone.
    /// It would drop trains as a whole, so there must be none.
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

    /// Fills a batch with what is there.
    pub fn receive(&self, batch: &mut Batch) -> io::Result<()> {
        batch.clear();
        // SAFETY: these are plain data for which all zeros is a valid value.
        let mut names: [libc::sockaddr_in6; BATCH_MESSAGES] = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        let mut headers: [libc::mmsghdr; BATCH_MESSAGES] = unsafe { std::mem::zeroed() };
        let mut controls = [Control([0; CONTROL_LEN]); BATCH_MESSAGES];
        let mut iovecs = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BATCH_MESSAGES];
        for (index, room) in batch.bytes.chunks_exact_mut(MESSAGE_LEN).enumerate() {
            iovecs[index] = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: MESSAGE_LEN };
            let header = &mut headers[index].msg_hdr;
            header.msg_name = (&raw mut names[index]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_in6>() as u32;
            header.msg_iov = &raw mut iovecs[index];
            header.msg_iovlen = 1;
            header.msg_control = (&raw mut controls[index]).cast();
            header.msg_controllen = CONTROL_LEN;
        }
        // SAFETY: every header points to memory of the stated length that lives until the call returns: names,
        // controls and iovecs on this stack, messages in the batch, which is borrowed mutably.
        let count = unsafe {
            libc::recvmmsg(
                self.socket.as_raw_fd(),
                headers.as_mut_ptr(),
                BATCH_MESSAGES as u32,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        if count < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(()),
                _ => Err(error),
            };
        }
        for (header, name) in headers.iter().zip(&names).take(count as usize) {
            let len = header.msg_len as usize;
            let mut message = Message { len, segment: len, source: Ipv6Addr::from(name.sin6_addr.s6_addr) };
            read_control(&header.msg_hdr, |level, kind, value| match (level, kind) {
                (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => batch.overflowed = value,
                (libc::SOL_UDP, libc::UDP_GRO) => message.segment = value as usize,
                _ => {}
            });
            batch.messages.push(message);
        }
        Ok(())
    }
}

impl AsFd for Subscription {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Room for control messages, aligned as their headers need it.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_LEN]);

impl Batch {
    pub fn new() -> Self {
        let bytes = vec![0; BATCH_MESSAGES * MESSAGE_LEN];
        Self { bytes, messages: Vec::with_capacity(BATCH_MESSAGES), overflowed: 0 }
    }

    /// Forgets what came before.
    pub fn clear(&mut self) {
        self.messages.clear();
        self.overflowed = 0;
    }

    /// Whether nothing came.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Whether there may be more where this came from.
    pub fn is_full(&self) -> bool {
        self.messages.len() == BATCH_MESSAGES
    }

    /// Packets in a message, on average: the kernel counts a train that it drops as one.
    pub fn packets_per_message(&self) -> f64 {
        self.packets().count() as f64 / self.messages.len().max(1) as f64
    }

    /// The packets, each with its source.
    pub fn packets(&self) -> impl Iterator<Item = (&[u8], Ipv6Addr)> {
        self.bytes.chunks_exact(MESSAGE_LEN).zip(&self.messages).flat_map(|(bytes, message)| {
            let bytes = &bytes[..message.len.min(MESSAGE_LEN)];
            // An empty datagram is a packet, too, and counted.
            let empty = bytes.is_empty().then_some(bytes);
            bytes.chunks(message.segment.max(1)).chain(empty).map(|packet| (packet, message.source))
        })
    }
}

/// Calls `each` with level, type and value of the control messages: all that we asked for are 32 bits wide.
fn read_control(header: &libc::msghdr, mut each: impl FnMut(libc::c_int, libc::c_int, u32)) {
    // SAFETY: the kernel filled the control buffer that `header` points to, which still lives in the caller.
    let mut control = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !control.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give null or a whole header within the buffer; its data is read
        // unaligned, and is as long as `cmsg_len` says.
        unsafe {
            if (*control).cmsg_len as usize >= libc::CMSG_LEN(size_of::<u32>() as u32) as usize {
                let value = libc::CMSG_DATA(control).cast::<u32>().read_unaligned();
                each((*control).cmsg_level, (*control).cmsg_type, value);
            }
            control = libc::CMSG_NXTHDR(header, control);
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trains_are_taken_apart_and_empty_packets_kept() {
        let mut batch = Batch::new();
        let source = Ipv6Addr::LOCALHOST;
        for (len, segment) in [(2500, 1000), (0, 0), (700, 700), (2000, 1000)] {
            let bytes = &mut batch.bytes[batch.messages.len() * MESSAGE_LEN..][..len];
            bytes.iter_mut().zip(0..).for_each(|(byte, at)| *byte = (at / 1000) as u8);
            batch.messages.push(Message { len, segment, source });
        }
        let packets: Vec<_> = batch.packets().map(|(p, _)| (p.len(), p.first().copied())).collect();
        let expected = [
            (1000, Some(0)),
            (1000, Some(1)),
            (500, Some(2)),
            (0, None),
            (700, Some(0)),
            (1000, Some(0)),
            (1000, Some(1)),
        ];
        assert_eq!(packets, expected);
        assert!(batch.is_full() && batch.packets_per_message() == 7.0 / 4.0);
    }
}
