//! `demo` (filled below).
use crate::cli;
use carousel_proto::outcome::Failure;

pub fn demo(_arguments: &cli::Demo) -> Result<(), Failure> {
    Err(Failure::usage("not built yet"))
}
