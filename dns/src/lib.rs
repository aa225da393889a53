//! Where a carousel is found: services as DNS records, and the way from a name to them.
//!
//! [`records`], [`zone`] and [`pick`] are pure; [`resolve`] asks nameservers, and can be left out of an embedded
//! build (`default-features = false`). Nothing here is trusted: the signed manifest decides.

#[cfg(feature = "resolve")]
mod error;
pub mod name;
pub mod pick;
pub mod records;
#[cfg(feature = "resolve")]
pub mod resolve;
#[cfg(feature = "resolve")]
mod trust;
pub mod zone;

#[cfg(feature = "resolve")]
pub use error::LookupError;
pub use name::Name;
pub use pick::pick;
pub use records::{Channel, Ladder, Service, Source};
#[cfg(feature = "resolve")]
pub use resolve::{Answer, Resolver, Settings, Validation};
pub use zone::emit_zone;
