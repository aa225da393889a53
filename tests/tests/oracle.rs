//! The parsers and the receiver under all that the fuzzer ever found interesting, and under random input besides.

use carousel_tests::fuzz::{TARGETS, Target};
use carousel_tests::sim::Dice;
use std::path::Path;
use std::{fs, panic};

#[test]
fn what_the_fuzzer_found_interesting_is_handled_well() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, target) in TARGETS {
        let inputs: Vec<_> = fs::read_dir(folder.join(name))
            .unwrap_or_else(|e| panic!("{name} has no corpus: {e}"))
            .map(|entry| entry.unwrap_or_else(|e| panic!("{name}: {e}")).path())
            .collect();
        assert!(!inputs.is_empty(), "{name} has an empty corpus");
        for path in inputs {
            let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let handled = panic::catch_unwind(|| target(&bytes));
            assert!(handled.is_ok(), "{}", path.display());
        }
    }
}

/// Random bytes get past few parsers; it is the receiver that they are for.
#[test]
fn random_packets_in_a_random_order_make_the_object_or_nothing() {
    let target = |name: &str| -> Target {
        TARGETS
            .into_iter()
            .find(|(known, _)| *known == name)
            .map_or_else(|| panic!("no target {name}"), |(_, f)| f)
    };
    for seed in 0..300 {
        let mut dice = Dice::new(seed);
        let mut bytes = vec![0; 4 * (1 + dice.below(60) as usize)];
        dice.fill(&mut bytes);
        let handled = panic::catch_unwind(|| target("receiver")(&bytes));
        assert!(handled.is_ok(), "seed {seed}: {bytes:?}");
    }
    for (_, target) in TARGETS.into_iter().filter(|(name, _)| *name != "receiver") {
        for seed in 0..20_000 {
            let mut dice = Dice::new(seed);
            let mut bytes = vec![0; dice.below(300) as usize];
            dice.fill(&mut bytes);
            target(&bytes);
        }
    }
}

/// What is nearly right gets deeper into a parser than random bytes: each known input with up to four things wrong.
#[test]
fn what_is_nearly_right_is_handled_as_well() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, target) in TARGETS.into_iter().filter(|(name, _)| *name != "receiver") {
        for entry in fs::read_dir(folder.join(name)).unwrap_or_else(|e| panic!("{name} has no corpus: {e}")) {
            let path = entry.unwrap_or_else(|e| panic!("{name}: {e}")).path();
            let known = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            for seed in 0..5_000 {
                let mut dice = Dice::new(seed);
                let mut bytes = known.clone();
                for _ in 0..1 + dice.below(4) {
                    let at = dice.below(bytes.len().max(1) as u64) as usize;
                    match dice.below(4) {
                        _ if bytes.is_empty() => bytes.push(dice.below(256) as u8),
                        0 => bytes[at] ^= 1 << dice.below(8),
                        1 => bytes[at] = [0, 0xff, 0x7f, 0x80][dice.below(4) as usize],
                        2 => drop(bytes.remove(at)),
                        _ => bytes.insert(at, dice.below(256) as u8),
                    }
                }
                let handled = panic::catch_unwind(|| target(&bytes));
                assert!(handled.is_ok(), "{} changed by seed {seed}: {bytes:?}", path.display());
            }
        }
    }
}
