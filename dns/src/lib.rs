//! Where a carousel is found: services as DNS records, and the way from a name to them.
//!
//! Nothing here is trusted: the signed manifest decides.

pub mod name;
pub mod pick;
pub mod records;
pub mod zone;

pub use name::Name;
pub use pick::pick;
pub use records::{Channel, Ladder, Service, Source};
pub use zone::emit_zone;
