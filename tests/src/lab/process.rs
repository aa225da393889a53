//! Programs the lab starts: each dies with the test process, whatever kills it, and is measured until reaped.
//!
//! `PR_SET_PDEATHSIG` fires when the *thread* that forked ends, not the process. Test threads come and go, so one
//! thread that lives as long as the process does all the forking. Grandchildren do not inherit the wish; so the
//! thread forks into a process namespace of its own, whose first process reads a pipe that only we can write to: when
//! we go, it goes, and the kernel kills everything inside. `/proc` stays the outer one, and so are the pids we show.
//!
//! Peak memory: `ru_maxrss` of a child starts at the resident size of the process that forked it (exec takes the
//! old image's peak along), so it is only the child's own when it is above ours; then it is exact. Below that we take
//! the largest `VmHWM` seen while the child lived, which misses what it grew by after the last look.
#![allow(unsafe_code)]

use crate::figures;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::fmt::Display;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, Weak, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// How a program ended and what it cost.
#[derive(Clone, Copy, Debug)]
pub struct Exit {
    /// Exit code or signal.
    pub status: ExitStatus,
    /// From just before the fork until the kernel reported the end.
    pub seconds: f64,
    /// User and system time.
    pub cpu_seconds: f64,
    /// Largest resident size in bytes (see the room's header for what that means).
    pub peak_rss: u64,
}

impl Exit {
    /// The exit code; a death by signal N is `-N`.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| -self.status.signal().unwrap_or(0))
    }

    /// Notes what a program cost as a row of the test's table.
    pub fn row(&self, name: &str) {
        let figures: [(&str, &dyn Display); 3] = [
            ("start to exit", &format!("{:.2} s", self.seconds)),
            ("peak memory", &format!("{:.1} MiB", self.peak_mib())),
            ("CPU", &format!("{:.2} s", self.cpu_seconds)),
        ];
        figures::row(name, &figures);
    }

    /// The peak in MiB, for people.
    pub fn peak_mib(&self) -> f64 {
        self.peak_rss as f64 / f64::from(1 << 20)
    }
}

/// A program that runs, or ran. Dropping it kills and reaps it, unless the lab is kept.
pub struct Running(Arc<Program>);

/// What is known of a program, shared by who started it, who watches it and who lists it.
pub(super) struct Program {
    what: String,
    pid: u32,
    pidfd: OwnedFd,
    /// `/proc/PID/status`, kept open: it can never become another process's.
    status: File,
    started: Instant,
    stdout: PathBuf,
    stderr: PathBuf,
    /// Largest `VmHWM` seen so far, in bytes.
    sampled: AtomicU64,
    exit: Mutex<Option<Exit>>,
    ended: Condvar,
}

impl Running {
    /// Starts `cmd` in network namespace `ns` with its output in the two files.
    pub(super) fn start(
        mut cmd: Command,
        ns: &Arc<File>,
        stdout: PathBuf,
        stderr: PathBuf,
    ) -> io::Result<Self> {
        let what = format!("{cmd:?}");
        cmd.stdin(Stdio::null()).stdout(File::create(&stdout)?).stderr(File::create(&stderr)?);
        let own_peak = peak_rss(&File::open("/proc/self/status")?).unwrap_or(0);
        let started = Instant::now();
        let pid = fork_exec(cmd, ns.clone())?.id();
        let program = Arc::new(Program {
            what,
            pid,
            pidfd: pidfd_open(pid)?,
            status: File::open(format!("/proc/{pid}/status"))?,
            started,
            stdout,
            stderr,
            sampled: AtomicU64::new(0),
            exit: Mutex::new(None),
            ended: Condvar::new(),
        });
        sampler().send(program.clone()).map_err(|_| io::Error::other("the lab's sampler thread is gone"))?;
        let watched = program.clone();
        thread::spawn(move || {
            let exit = watched.reap(own_peak);
            *watched.exit.lock().unwrap_or_else(PoisonError::into_inner) = Some(exit);
            watched.ended.notify_all();
        });
        Ok(Self(program))
    }

    /// For the host's list; it can be upgraded while this lives or the program runs.
    pub(super) fn program(&self) -> Weak<Program> {
        Arc::downgrade(&self.0)
    }

    /// The process id, for `/proc` and `nsenter`.
    pub fn pid(&self) -> u32 {
        self.0.pid
    }

    /// When the fork began.
    pub fn started(&self) -> Instant {
        self.0.started
    }

    /// Waits for the end; `None` when it did not come in time.
    pub fn wait(&self, limit: Duration) -> Option<Exit> {
        self.0.wait(limit)
    }

    /// Waits for the end, and panics with everything the program said when it does not come in time.
    pub fn finish(&self, limit: Duration) -> Exit {
        self.wait(limit).unwrap_or_else(|| panic!("still running after {limit:?}: {self}"))
    }

    /// Whether it has not ended yet.
    pub fn is_alive(&self) -> bool {
        self.0.is_alive()
    }

    /// User and system time so far, in the kernel's ticks of 10 ms; 0 once it has ended.
    pub fn cpu_seconds(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.pid)).unwrap_or_default();
        // The name in parentheses may contain anything; fields 14 and 15 count from behind it.
        let fields = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace();
        fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
    }

    /// Time on a CPU so far, of its living threads, in nanoseconds; 0 once it has ended. For a program that sleeps most
    /// of the time this is exact, where `cpu_seconds` counts the ticks that happened to find it awake.
    pub fn cpu_nanos(&self) -> u64 {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid())).into_iter().flatten().flatten();
        let nanos = |thread: fs::DirEntry| {
            fs::read_to_string(thread.path().join("schedstat")).ok()?.split(' ').next()?.parse::<u64>().ok()
        };
        threads.filter_map(nanos).sum()
    }

    /// Sends a signal; a program that has ended already does not mind.
    pub fn kill(&self, signal: Signal) {
        let fd = self.0.pidfd.as_raw_fd();
        // SAFETY: plain system call on a descriptor we own; the null siginfo asks for the default one.
        unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, fd, signal as libc::c_int, std::ptr::null::<u8>(), 0)
        };
    }

    /// What it wrote on stdout so far.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.0.stdout).unwrap_or_default()).into_owned()
    }

    /// What it wrote on stderr so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.0.stderr).unwrap_or_default()).into_owned()
    }
}

impl Display for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}\n--- stdout\n{}--- stderr\n{}", self.0.what, self.stdout(), self.stderr())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if super::kept() {
            return;
        }
        self.kill(Signal::SIGKILL);
        // Bounded: a process in uninterruptible sleep must not hang the test command.
        self.wait(Duration::from_secs(5));
    }
}

impl Program {
    fn wait(&self, limit: Duration) -> Option<Exit> {
        let exit = self.exit.lock().unwrap_or_else(PoisonError::into_inner);
        let (exit, _) = self
            .ended
            .wait_timeout_while(exit, limit, |exit| exit.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        *exit
    }

    pub(super) fn is_alive(&self) -> bool {
        self.wait(Duration::ZERO).is_none()
    }

    /// Looks at its memory; `false` when there is nothing to look at any more.
    fn sample(&self) -> bool {
        let seen = peak_rss(&self.status);
        self.sampled.fetch_max(seen.unwrap_or(0), Ordering::Relaxed);
        seen.is_some()
    }

    /// Waits for the end, then reaps it.
    fn reap(&self, own_peak: u64) -> Exit {
        let mut poll = libc::pollfd { fd: self.pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd, count one. A signal may end the wait early: then it starts again.
        while unsafe { libc::poll(&raw mut poll, 1, -1) } < 1 {}
        let seconds = self.started.elapsed().as_secs_f64();
        let pid = self.pid.cast_signed();
        // Not reaped yet, so the number is still its own: nothing of its group survives it.
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        let mut status = 0;
        // SAFETY: all-zero is a valid rusage.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers are valid for writing; the child is ours and only this thread reaps it.
        unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
        let time = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
        let max_rss = u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024;
        Exit {
            status: ExitStatus::from_raw(status),
            seconds,
            cpu_seconds: time(usage.ru_utime) + time(usage.ru_stime),
            peak_rss: if max_rss > own_peak { max_rss } else { self.sampled.load(Ordering::Relaxed) },
        }
    }
}

/// For people who look inside a kept lab.
impl Display for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (out, err) = (self.stdout.display(), self.stderr.display());
        write!(f, "  pid {}: {}\n    {out}\n    {err}", self.pid, self.what)
    }
}

/// Polls a condition until it holds; panics with `what` when it does not within `limit`.
pub fn until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < limit, "waited {limit:?} in vain: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Forks and executes on the one long-lived thread; the child enters `ns` and dies with this process.
fn fork_exec(mut cmd: Command, ns: Arc<File>) -> io::Result<Child> {
    type Job = Box<dyn FnOnce() + Send>;
    static SPAWNER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, queue) = mpsc::channel::<Job>();
        thread::spawn(move || {
            #[allow(clippy::zombie_processes)] // the thread never ends before the process, so neither does it
            let _first = first_process().unwrap_or_else(|e| panic!("no process namespace: {e}"));
            queue.into_iter().for_each(|job| job());
        });
        jobs
    });

    let file_limit = FILE_LIMIT.get().copied();
    let hook = move || {
        if let Some((soft, hard)) = file_limit {
            setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
        }
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        // Our parent is outside the namespace and shows as 0. Anything else is the foster parent: the real one died
        // between fork and prctl, and nobody will send us the signal.
        if nix::unistd::getppid().as_raw() != 0 {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(setns(&*ns, CloneFlags::CLONE_NEWNET)?)
    };
    // A group of its own, so that what it leaves behind can be swept up when it ends.
    cmd.process_group(0);
    // SAFETY: the hook makes four system calls and allocates nothing, which is allowed between fork and exec.
    unsafe { cmd.pre_exec(hook) };
    let (done, answer) = mpsc::channel();
    let job: Job = Box::new(move || drop(done.send(cmd.spawn())));
    spawner.send(job).map_err(|_| io::Error::other("the lab's spawner thread is gone"))?;
    answer.recv().map_err(|_| io::Error::other("the lab's spawner thread is gone"))?
}

/// Sends the calling thread's future children into a new process namespace and starts its first process.
/// A pipe and not a death signal: that is lost when we die between its fork and its wish.
fn first_process() -> io::Result<Child> {
    unshare(CloneFlags::CLONE_NEWPID)?;
    let mut cmd = Command::new("cat");
    cmd.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).spawn()
}

/// Has `cmd` get a signal when the calling thread ends, which must therefore wait for it.
pub fn die_with_us(cmd: &mut Command, signal: Signal) -> &mut Command {
    let parent = nix::unistd::getpid();
    let hook = move || {
        nix::sys::prctl::set_pdeathsig(signal)?;
        // We may have died before that.
        if nix::unistd::getppid() == parent { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    };
    // SAFETY: the hook makes two system calls and allocates nothing.
    unsafe { cmd.pre_exec(hook) }
}

/// The limit of open files we were started with, when it was raised.
static FILE_LIMIT: OnceLock<(u64, u64)> = OnceLock::new();

/// Raises this process's limit of open files as far as it may: a host takes one, a program two. What the lab
/// starts gets the old limit again, as a user's programs would.
pub(super) fn raise_file_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok()
    {
        let _ = FILE_LIMIT.set((soft, hard));
    }
}

fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: plain system call; the pid is our own child, not yet reaped, so it cannot be somebody else's.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The thread that looks at every program's memory, by the door through which programs reach it.
///
/// A new one at once, and all of them every 10 ms; but after a round it rests for 50 times as long as that took. So a
/// few programs are watched closely, and 1,000 cost 2 % of a core. What is then missed little matters: programs that
/// outgrow this process are measured exactly by the kernel.
fn sampler() -> &'static mpsc::Sender<Arc<Program>> {
    static SAMPLER: OnceLock<mpsc::Sender<Arc<Program>>> = OnceLock::new();
    SAMPLER.get_or_init(|| {
        let (door, newcomers) = mpsc::channel();
        thread::spawn(move || sample_all(&newcomers));
        door
    })
}

fn sample_all(newcomers: &mpsc::Receiver<Arc<Program>>) {
    let mut programs: Vec<Arc<Program>> = Vec::new();
    let mut due = Instant::now();
    loop {
        match newcomers.recv_timeout(due.saturating_duration_since(Instant::now())) {
            Ok(program) => {
                program.sample();
                programs.push(program);
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let began = Instant::now();
                programs.retain(|program| program.sample());
                due = Instant::now() + (began.elapsed() * 50).max(Duration::from_millis(10));
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// `VmHWM` in a `/proc/PID/status`, in bytes; gone once the process is a zombie.
fn peak_rss(status: &File) -> Option<u64> {
    let mut text = [0; 4096];
    let n = status.read_at(&mut text, 0).ok()?;
    let line = text[..n].split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"VmHWM:"))?;
    let kilobytes = str::from_utf8(line).ok()?.trim().strip_suffix("kB")?;
    Some(kilobytes.trim().parse::<u64>().ok()? * 1024)
}
