//! One fuzzer for everything: `CAROUSEL_FUZZ` in the environment names what of `carousel_tests::fuzz` it tries.
#![no_main]

use carousel_tests::fuzz::{TARGETS, Target};
use libfuzzer_sys::fuzz_target;
use std::sync::OnceLock;

fn target() -> Target {
    static TARGET: OnceLock<Target> = OnceLock::new();
    *TARGET.get_or_init(|| {
        let wanted = std::env::var("CAROUSEL_FUZZ").unwrap_or_default();
        match TARGETS.into_iter().find(|(name, _)| *name == wanted) {
            Some((_, target)) => target,
            None => {
                eprintln!("CAROUSEL_FUZZ must be one of: {}", TARGETS.map(|(name, _)| name).join(" "));
                std::process::exit(2)
            }
        }
    })
}

fuzz_target!(|data: &[u8]| target()(data));
