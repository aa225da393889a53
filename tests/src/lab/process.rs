//! Programs the lab starts: each dies with the test process, whatever kills it, and is measured until reaped.
//!
//! `PR_SET_PDEATHSIG` fires when the *thread* that forked ends, not the process. Test threads come and go, so one
//! thread that lives as long as the process does all the forking. Grandchildren do not inherit the wish; so the
//! thread forks into a process namespace of its own, whose first process is a `sleep` that has it: when that goes,
//! the kernel kills everything inside. `/proc` stays the outer one, and so are the pids we show.
//!
//! Peak memory: `ru_maxrss` of a child starts at the resident size of the process that forked it (exec takes the
//! old image's peak along), so it is only the child's own when it is above ours. Below that we take the largest
//! `VmHWM` seen while the child lived, read every few milliseconds.
#![allow(unsafe_code)]

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, mpsc};
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

    /// The peak in MiB, for people.
    pub fn peak_mib(&self) -> f64 {
        self.peak_rss as f64 / f64::from(1 << 20)
    }
}

/// A program that runs, or ran. Dropping it kills and reaps it.
pub struct Running {
    what: String,
    pid: u32,
    pidfd: Arc<OwnedFd>,
    started: Instant,
    stdout: PathBuf,
    stderr: PathBuf,
    exit: Arc<(Mutex<Option<Exit>>, Condvar)>,
}

impl Running {
    /// Starts `cmd` in network namespace `ns` with its output in the two files.
    pub(crate) fn start(
        mut cmd: Command,
        ns: &Arc<File>,
        stdout: PathBuf,
        stderr: PathBuf,
    ) -> io::Result<Self> {
        let what = format!("{cmd:?}");
        cmd.stdin(Stdio::null()).stdout(File::create(&stdout)?).stderr(File::create(&stderr)?);
        let own_peak = peak_rss_of("self").unwrap_or(0);
        let started = Instant::now();
        let pid = fork_exec(cmd, ns.clone())?.id();
        let pidfd = Arc::new(pidfd_open(pid)?);
        let exit = Arc::new((Mutex::new(None), Condvar::new()));
        let (fd, cell) = (pidfd.clone(), exit.clone());
        thread::spawn(move || {
            let end = watch(pid, &fd, started, own_peak);
            *cell.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(end);
            cell.1.notify_all();
        });
        Ok(Self { what, pid, pidfd, started, stdout, stderr, exit })
    }

    /// The process id, for `/proc` and `nsenter`.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// When the fork began.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Waits for the end; `None` when it did not come in time.
    pub fn wait(&self, limit: Duration) -> Option<Exit> {
        let (cell, bell) = &*self.exit;
        let guard = cell.lock().unwrap_or_else(PoisonError::into_inner);
        let (guard, _) = bell
            .wait_timeout_while(guard, limit, |exit| exit.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        *guard
    }

    /// Waits for the end, and panics with everything the program said when it does not come in time.
    pub fn finish(&self, limit: Duration) -> Exit {
        self.wait(limit).unwrap_or_else(|| panic!("still running after {limit:?}: {self}"))
    }

    /// Whether it has not ended yet.
    pub fn is_alive(&self) -> bool {
        self.wait(Duration::ZERO).is_none()
    }

    /// User and system time so far, in the kernel's ticks of 10 ms; 0 once it has ended.
    pub fn cpu_seconds(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        // The name in parentheses may contain anything; fields 14 and 15 count from behind it.
        let fields = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace();
        fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
    }

    /// Time on a CPU so far, of its living threads, in nanoseconds; 0 once it has ended. For a program that sleeps most
    /// of the time this is exact, where `cpu_seconds` counts the ticks that happened to find it awake.
    pub fn cpu_nanos(&self) -> u64 {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid)).into_iter().flatten().flatten();
        let nanos = |thread: fs::DirEntry| {
            fs::read_to_string(thread.path().join("schedstat")).ok()?.split(' ').next()?.parse::<u64>().ok()
        };
        threads.filter_map(nanos).sum()
    }

    /// Sends a signal; a program that has ended already does not mind.
    pub fn kill(&self, signal: Signal) {
        let fd = self.pidfd.as_raw_fd();
        // SAFETY: plain system call on a descriptor we own; the null siginfo asks for the default one.
        unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, fd, signal as libc::c_int, std::ptr::null::<u8>(), 0)
        };
    }

    /// What it wrote on stdout so far.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.stdout).unwrap_or_default()).into_owned()
    }

    /// What it wrote on stderr so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.stderr).unwrap_or_default()).into_owned()
    }
}

impl std::fmt::Display for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}\n--- stdout\n{}--- stderr\n{}", self.what, self.stdout(), self.stderr())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill(Signal::SIGKILL);
        // Bounded: a process in uninterruptible sleep must not hang the test command.
        self.wait(Duration::from_secs(5));
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
            #[allow(clippy::zombie_processes)]
            // it outlives every wait: the thread never ends before the process
            let _first = first_process().unwrap_or_else(|e| panic!("no process namespace: {e}"));
            queue.into_iter().for_each(|job| job());
        });
        jobs
    });

    let hook = move || {
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
    // SAFETY: the hook makes three system calls and allocates nothing, which is allowed between fork and exec.
    unsafe { cmd.pre_exec(hook) };
    let (done, answer) = mpsc::channel();
    let job: Job = Box::new(move || drop(done.send(cmd.spawn())));
    spawner.send(job).map_err(|_| io::Error::other("the lab's spawner thread is gone"))?;
    answer.recv().map_err(|_| io::Error::other("the lab's spawner thread is gone"))?
}

/// Sends the calling thread's future children into a new process namespace and starts its first process.
fn first_process() -> io::Result<Child> {
    unshare(CloneFlags::CLONE_NEWPID)?;
    let mut cmd = Command::new("sleep");
    cmd.arg("infinity").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    // SAFETY: one system call, no allocation.
    unsafe { cmd.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?)) };
    cmd.spawn()
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

/// Samples the peak memory until the process ends, then reaps it.
fn watch(pid: u32, pidfd: &OwnedFd, started: Instant, own_peak: u64) -> Exit {
    let mut sampled = 0;
    let mut poll = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    loop {
        sampled = peak_rss_of(&pid.to_string()).unwrap_or(0).max(sampled);
        // SAFETY: one valid pollfd, count one.
        if unsafe { libc::poll(&raw mut poll, 1, 10) } > 0 {
            break;
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    // Not reaped yet, so the number is still its own: nothing of its group survives it.
    let _ = killpg(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
    let mut status = 0;
    // SAFETY: all-zero is a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are valid for writing; the child is ours and only this thread reaps it.
    unsafe { libc::wait4(pid.cast_signed(), &raw mut status, 0, &raw mut usage) };
    let time = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
    let max_rss = u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024;
    Exit {
        status: ExitStatus::from_raw(status),
        seconds,
        cpu_seconds: time(usage.ru_utime) + time(usage.ru_stime),
        peak_rss: if max_rss > own_peak { max_rss } else { sampled },
    }
}

/// `VmHWM` of a process in bytes; gone once it is a zombie.
fn peak_rss_of(pid: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
