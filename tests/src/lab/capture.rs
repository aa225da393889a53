//! Packets as an interface hands them over, with the kernel's time of each.
//!
//! On the sender's interface that is the moment at which a packet leaves, whatever the receiver's CPU does. A train
//! for segmentation offload is one packet here, longer than the MTU; without offload the kernel has cut it up before.
//! See packet(7).
#![allow(unsafe_code)]

use super::{Host, process::until};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use socket2::{Domain, SockAddr, SockFilter, Socket, Type};
use std::io::{self, IoSliceMut};
use std::mem::{offset_of, zeroed};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Bytes kept of each frame: Ethernet, IPv6, UDP and 64 of what they carry.
pub const HEAD: usize = 14 + 40 + 8 + 64;
/// Frames taken by one system call.
const BATCH: usize = 64;
/// At 1 Gbit/s a quarter of a second without a CPU.
const BUFFER: usize = 64 << 20;

/// A UDP packet to a multicast group.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// Nanoseconds since 1970.
    pub at: u64,
    /// Its bytes, Ethernet header included, and more than the MTU if it is a train.
    pub len: usize,
    /// Its first bytes, [`HEAD`] at most.
    pub head: &'a [u8],
}

/// A thread that looks at every IPv6 UDP packet to a group which passes an interface, until `finish`.
pub struct Capture<S> {
    /// Frames from this moment on do not count any more; `u64::MAX` while it goes on.
    stop: Arc<AtomicU64>,
    thread: JoinHandle<io::Result<(S, u64)>>,
}

impl<S: Send + 'static> Capture<S> {
    /// Begins at once; `look` sees packet after packet.
    pub fn start(
        host: &Host,
        interface: &str,
        mut state: S,
        mut look: impl FnMut(&mut S, Frame<'_>) + Send + 'static,
    ) -> Self {
        let socket = host
            .within(|| open(interface))
            .unwrap_or_else(|e| panic!("host {}: cannot capture on {interface}: {e}", host.name()));
        until("the kernel to stamp packets", Duration::from_secs(20), || {
            host.within(are_stamped).unwrap_or_else(|e| panic!("host {}: {e}", host.name()))
        });
        let stop = Arc::new(AtomicU64::new(u64::MAX));
        let stopped = stop.clone();
        let run = move || {
            let mut batch = Batch::new();
            loop {
                // Read first: what is queued when it is stopped still belongs to it.
                let end = stopped.load(Ordering::Relaxed);
                let got = batch.receive(&socket)?;
                batch.frames().filter(|frame| frame.at < end).for_each(|frame| look(&mut state, frame));
                if end < u64::MAX && (got == 0 || batch.frames().any(|frame| frame.at >= end)) {
                    return Ok((state, missed(&socket)?));
                }
            }
        };
        Self { stop, thread: thread::spawn(run) }
    }

    /// Ends it: what `look` made of the packets, and how many it missed because they came too fast.
    pub fn finish(self) -> (S, u64) {
        self.stop.store(since_1970().as_nanos() as u64, Ordering::Relaxed);
        match self.thread.join() {
            Ok(Ok(end)) => end,
            Ok(Err(e)) => panic!("the capture broke: {e}"),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

fn open(interface: &str) -> io::Result<Socket> {
    let index = nix::net::if_::if_nametoindex(interface)?;
    // Protocol 0 hears nothing, until `bind` says which: so nothing comes in before the filter is there.
    let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
    let step = |code: u32, jt, jf, k| SockFilter::new(code as u16, jt, jf, k);
    let load = |size: u32, offset: u32| step(libc::BPF_LD | size | libc::BPF_ABS, 0, 0, offset);
    let unless = |value: u32, skip| step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, skip, value);
    socket.attach_filter(&[
        load(libc::BPF_H, 12),
        unless(libc::ETH_P_IPV6 as u32, 5),
        load(libc::BPF_B, 20),
        unless(libc::IPPROTO_UDP as u32, 3),
        load(libc::BPF_B, 38),
        unless(0xff, 1),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    ])?;
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
    if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).is_err() {
        socket.set_recv_buffer_size(BUFFER)?;
    }
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    // SAFETY: the closure fills in a sockaddr_ll and says how long that is; `storage` is larger and aligned for any.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, len| {
            let address = storage.cast::<libc::sockaddr_ll>();
            (*address).sll_family = libc::AF_PACKET as u16;
            (*address).sll_protocol = (libc::ETH_P_ALL as u16).to_be();
            (*address).sll_ifindex = index.cast_signed();
            *len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })
    }?;
    socket.bind(&address)?;
    Ok(socket)
}

/// Whether packets carry the time at which they passed. The kernel begins with that some time after the first socket
/// asked for it, on a busy machine after seconds; until then they have the time at which they are read.
fn are_stamped() -> io::Result<bool> {
    let (from, to) = (UdpSocket::bind("[::1]:0")?, UdpSocket::bind("[::1]:0")?);
    setsockopt(&to, sockopt::ReceiveTimestampns, &true)?;
    to.set_read_timeout(Some(Duration::from_secs(1)))?;
    from.send_to(b"?", to.local_addr()?)?;
    let sent = since_1970();
    thread::sleep(Duration::from_millis(1)); // so that reading it is another moment
    let (mut byte, mut control) = ([0], nix::cmsg_space!(libc::timespec));
    let mut vectors = [IoSliceMut::new(&mut byte)];
    let got = recvmsg::<()>(to.as_raw_fd(), &mut vectors, Some(&mut control), MsgFlags::empty())?;
    let stamps = got.cmsgs()?.filter_map(|message| match message {
        ControlMessageOwned::ScmTimestampns(at) => Some(Duration::from(at)),
        _ => None,
    });
    Ok(stamps.last().is_some_and(|at| at <= sent))
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Frames that the kernel could not queue for us.
fn missed(socket: &Socket) -> io::Result<u64> {
    #[repr(C)]
    struct Statistics {
        packets: libc::c_uint,
        drops: libc::c_uint,
    }
    let mut statistics = Statistics { packets: 0, drops: 0 };
    let mut len = size_of::<Statistics>() as libc::socklen_t;
    // SAFETY: pointer and length describe one live value of the type that this option fills in.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut statistics).cast(),
            &raw mut len,
        )
    };
    if done == 0 { Ok(u64::from(statistics.drops)) } else { Err(io::Error::last_os_error()) }
}

/// Room for frames and their times.
struct Batch {
    heads: Box<[[u8; HEAD]; BATCH]>,
    times: Box<[Control; BATCH]>,
    vectors: Box<[libc::iovec; BATCH]>,
    messages: Box<[libc::mmsghdr; BATCH]>,
    count: usize,
}

/// SCM_TIMESTAMPNS, the only control message asked for.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control {
    header: libc::cmsghdr,
    time: libc::timespec,
}

impl Batch {
    fn new() -> Self {
        // SAFETY: these are structures of numbers and pointers, for all of which zero is a valid value.
        let (times, vectors, messages) = unsafe { (zeroed(), zeroed(), zeroed()) };
        Self {
            heads: Box::new([[0; HEAD]; BATCH]),
            times: Box::new(times),
            vectors: Box::new(vectors),
            messages: Box::new(messages),
            count: 0,
        }
    }

    /// Waits for frames; 0 when none came for a while.
    fn receive(&mut self, socket: &Socket) -> io::Result<usize> {
        for i in 0..BATCH {
            self.vectors[i] = libc::iovec { iov_base: self.heads[i].as_mut_ptr().cast(), iov_len: HEAD };
            let header = &mut self.messages[i].msg_hdr;
            (header.msg_iov, header.msg_iovlen) = (&raw mut self.vectors[i], 1);
            (header.msg_control, header.msg_controllen) =
                ((&raw mut self.times[i]).cast(), size_of::<Control>());
        }
        // MSG_TRUNC: the length is the frame's, not that of what we keep. After the first frame, only what is there.
        let flags = libc::MSG_TRUNC | libc::MSG_WAITFORONE;
        // SAFETY: every message points to buffers of this batch, whose lengths it names, and all outlive the call.
        let got = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.messages.as_mut_ptr(),
                BATCH as u32,
                flags,
                std::ptr::null_mut(),
            )
        };
        self.count = 0;
        match usize::try_from(got) {
            Ok(count) => self.count = count,
            Err(_) => match io::Error::last_os_error() {
                e if [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted].contains(&e.kind()) => {}
                e => return Err(e),
            },
        }
        Ok(self.count)
    }

    fn frames(&self) -> impl Iterator<Item = Frame<'_>> {
        (0..self.count).map(|i| {
            let message = &self.messages[i];
            assert!(
                message.msg_hdr.msg_controllen >= offset_of!(Control, time) + size_of::<libc::timespec>(),
                "a frame without a time"
            );
            let (time, len) = (self.times[i].time, message.msg_len as usize);
            let at = time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned();
            Frame { at, len, head: &self.heads[i][..len.min(HEAD)] }
        })
    }
}
