//! What the `doctor` of both programs have in common.
//!
//! [`finding`] is how they tell, [`kernel`] reads the kernel's own texts, [`link`] looks at one interface and judges it.
//! All but [`link::Link::read`] and [`link::Counters::read`] is pure: facts in, findings out.

pub mod finding;
pub mod kernel;
pub mod link;

pub use finding::{Finding, Id, Level, Report};
pub use link::{Counters, Link};
