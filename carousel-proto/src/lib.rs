//! The carousel protocol, without a network: bytes, numbers and instants go in, values come out.
//!
//! Nothing here opens a socket or a file, starts a thread, reads a clock or draws entropy; `clippy.toml`
//! beside this crate enforces it. [`PROTOCOL.md`](../PROTOCOL.md) is the normative text.
//!
//! The rooms, in the order a byte of the file passes them: [`geometry`] cuts the object into blocks and
//! symbols, [`fec`] adds repair symbols, [`schedule`] puts all of them into sending order, [`pages`] hashes
//! them into a tree, [`manifest`] describes the object and [`trust`] its signature; a folder's [`table`] says which of
//! its bytes are which file; [`device`] judges whom it is for, by [`rollout`] and [`apply`]; [`keys`], [`heartbeat`] and
//! [`authority`] make trust last, with [`signature`]s in few bytes; [`bundle`] is all that on the sender's disk, [`pacer`] says when to send, [`wire`] is the packet, [`receiver`] the way back;
//! [`tiers`] says which channels to listen to, [`journal`] what a receiver had before it was killed.

pub mod apply;
pub mod authority;
pub mod bundle;
pub mod device;
pub mod fec;
pub mod geometry;
pub mod heartbeat;
pub mod journal;
pub mod keys;
mod lanes;
pub mod manifest;
pub mod outcome;
pub mod pacer;
pub mod pages;
pub mod receiver;
pub mod rollout;
pub mod schedule;
pub mod signature;
pub mod sources;
pub mod table;
pub mod textfile;
pub mod tiers;
pub mod trust;
pub mod units;
pub mod wire;
