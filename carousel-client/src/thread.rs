//! What the system is told about our threads.

#![allow(unsafe_code)]

use nix::libc;

/// How far the decoders step back: the thread that receives gets nine tenths of a core that they share.
const NICE: libc::c_int = 10;

/// Lets the calling thread work only while the others leave it a core. What a decoder does can wait; packets cannot.
pub fn step_back() {
    // SAFETY: takes a number and touches no memory. On Linux it is about this thread only; a failure changes nothing.
    unsafe { libc::nice(NICE) };
}
