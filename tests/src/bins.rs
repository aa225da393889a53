//! Where the built programs are, and running them to their end outside the lab.

use crate::lab::die_with_us;
use nix::sys::signal::Signal;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// The path of `carousel-server`.
pub fn server() -> PathBuf {
    find("carousel-server")
}

/// The path of `carousel-client`.
pub fn client() -> PathBuf {
    find("carousel-client")
}

/// Runs a program to its end, two minutes at most (then the exit code is 124).
pub fn run<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, args: impl IntoIterator<Item = S>) -> Output {
    let program = program.as_ref();
    // coreutils' timeout: std has no bounded wait, and a second one of ours is not worth its lines.
    let mut cmd = Command::new("timeout");
    cmd.args(["-k", "1", "120"]).arg(program).args(args).stdin(Stdio::null());
    // It passes the signal on. Its group is its own, so that Ctrl-C would not reach it otherwise.
    die_with_us(&mut cmd, Signal::SIGTERM)
        .output()
        .unwrap_or_else(|e| panic!("cannot run {}: {e}", program.display()))
}

/// The same with the program as the first word.
pub fn run_line<S: AsRef<OsStr>>(line: &[S]) -> Output {
    let Some((program, args)) = line.split_first() else { panic!("nothing to run") };
    run(program, args)
}

/// `CAROUSEL_BIN_DIR` if set; else the profile folder this test program was built into, or `release` beside it:
/// whichever has the newer one, for nobody builds both each time.
fn find(name: &str) -> PathBuf {
    let asked = std::env::var_os("CAROUSEL_BIN_DIR").map(PathBuf::from);
    let own = std::env::current_exe().unwrap_or_default();
    let near = own.ancestors().skip(1).take(2).map(PathBuf::from);
    let release = own.ancestors().nth(3).map(|target| target.join("release"));
    let places: Vec<PathBuf> = asked.map_or_else(|| near.chain(release).collect(), |dir| vec![dir]);
    let built = |path: &PathBuf| path.metadata().and_then(|metadata| metadata.modified()).ok();
    let found = places.iter().map(|dir| dir.join(name)).filter(|path| path.is_file());
    found.max_by_key(built).unwrap_or_else(|| {
        panic!("no {name} in {places:?}: run the test command of README.md, or set CAROUSEL_BIN_DIR")
    })
}
