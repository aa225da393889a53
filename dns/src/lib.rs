//! Sources and channels as DNS records; the resolver arrives with the discovery work.
