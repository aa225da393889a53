//! The lab: hosts that are network namespaces, links between them, loss on the links, and the built programs
//! run as a user would run them. The scenarios are in `tests/*.rs`; `bin/matrix` measures, `bin/forger` lies.
//!
//! The lab panics when it cannot do what it was asked: it serves tests, and a test with half a network is worse
//! than none. What it refuses: fixed sleeps for readiness, and anything that outlives the test process.

pub mod bars;
pub mod bins;
pub mod chart;
pub mod deployment;
pub mod document;
pub mod figures;
pub mod forgery;
pub mod fuzz;
pub mod lab;
pub mod object;
pub mod plot;
pub mod reference;
pub mod scene;
pub mod sim;
pub mod topology;
