//! The tail: from the last packet that a client needed to the file under its name.
//!
//! Which packet that was follows from the packets themselves: the server starts when the client listens, the cable loses
//! nothing, so the client has what left the server, and is served when every block has as many different symbols as it
//! has source symbols. So it does not matter what the client says of itself.

use crate::{Bench, MTU, watched};
use carousel_proto::geometry::{Geometry, Sbn};
use carousel_proto::wire::{IP_UDP_LEN, Kind, Packet};
use carousel_tests::bars::{Bar, Bars, Figure, Run};
use carousel_tests::bins;
use carousel_tests::lab::{Capture, Frame, Host, until};
use carousel_tests::scene::{self, Packed, SOURCE};
use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Ethernet, IPv6 and UDP before the packet.
const BEFORE: usize = 14 + IP_UDP_LEN;
const RATE: &str = "100M";

pub fn measure(bench: &Bench, bars: &mut Bars) {
    let (s, c) = bench.cable(false);
    let mut figures = Vec::new();
    for mib in [bench.pick(100, 50), bench.pick(1024, 200)] {
        let packed = bench.pack(mib << 20);
        let name = |what: &str| format!("{what}, {mib} MiB at {RATE}bit/s");
        let mut share = Figure::new(name("tail, of the whole time"), "%", Bar::AtMost(5.0));
        let mut seconds = Figure::new(name("tail"), "s", Bar::None);
        let mut cpu = Figure::new(name("carousel-client"), "CPU s/GB", Bar::None);
        // The large one takes a minute and a half.
        let runs = if mib > 512 { bench.runs.min(3) } else { bench.runs };
        for _ in 0..runs {
            match run(&s, &c, &packed) {
                Ok((run, times)) => {
                    share.add(run, times.tail / times.whole * 100.0);
                    seconds.add(run, times.tail);
                    cpu.add(run, times.cpu * 1e9 / packed.size as f64);
                }
                Err(why) => {
                    share.add(Run::Spoilt, f64::NAN);
                    share.note(why);
                }
            }
        }
        figures.extend([share, seconds, cpu]);
    }
    bars.table("The tail: from the last needed packet to the file under its name", &figures);
}

struct Times {
    tail: f64,
    whole: f64,
    cpu: f64,
}

fn run(s: &Host, c: &Host, packed: &Packed) -> Result<(Run, Times), String> {
    let out = packed.bundle.with_file_name("got");
    let _ = fs::remove_file(&out);
    let geometry = geometry(packed)?;
    let losses = c.snmp6().buffer_losses();
    let (run, result) = watched(|| {
        let client = scene::get(c, &[SOURCE], packed, &out, &[]);
        scene::wait_joined(c);
        let capture =
            Capture::start(s, "eth0", Needed::new(geometry), |needed: &mut Needed, frame| needed.see(&frame));
        let server = scene::serve(s, packed, RATE, &[]);
        let limit = Duration::from_secs_f64(packed.size as f64 * 8.0 / 100e6 * 3.0 + 30.0);
        until("the file", limit, || out.exists() || !client.is_alive());
        let named = now();
        drop(server);
        let (needed, missed) = capture.finish();
        let got = scene::arrive(&client, packed, &out, limit);
        (got, named, needed, missed)
    });
    let (got, named, needed, missed) = result;
    let _ = fs::remove_file(&out);
    if missed + got.done.packets_lost + (c.snmp6().buffer_losses() - losses) > 0 {
        return Err(format!("{missed} packets were not seen, {} were lost", got.done.packets_lost));
    }
    let Some((first, last)) = needed.first.zip(needed.last) else {
        return Err("the file was there before its packets".to_owned());
    };
    let since = |then: u64| named.saturating_sub(then) as f64 / 1e9;
    Ok((run, Times { tail: since(last), whole: since(first), cpu: got.exit.cpu_seconds }))
}

/// As `inspect` tells it.
fn geometry(packed: &Packed) -> Result<Geometry, String> {
    let said = bins::run_line(&scene::args(&[&bins::server(), &"inspect", &packed.bundle, &"--json"]));
    let said: serde_json::Value = serde_json::from_slice(&said.stdout).map_err(|e| e.to_string())?;
    let number = |key: &str| said[key].as_u64().ok_or_else(|| format!("inspect does not tell {key}: {said}"));
    let block_log2 = number("block_size")?.trailing_zeros() as u8;
    let (full, last) = (number("repair_full")? as u16, number("repair_last")? as u16);
    Geometry::new(packed.size, number("symbol_size")? as u16, block_log2, full, last)
        .map_err(|e| e.to_string())
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64)
}

/// When the first packet left, and the last one that a client without any loss needs.
struct Needed {
    geometry: Geometry,
    first: Option<u64>,
    last: Option<u64>,
    /// The symbols of each block that have left, a bit each, and how many more of them the block wants.
    seen: Vec<Vec<u64>>,
    wanted: Vec<u16>,
    open: u32,
}

impl Needed {
    fn new(geometry: Geometry) -> Self {
        let blocks = || (0..geometry.blocks()).map(Sbn);
        Self {
            geometry,
            first: None,
            last: None,
            seen: blocks().map(|sbn| vec![0; geometry.symbols(sbn).div_ceil(64) as usize]).collect(),
            wanted: blocks().map(|sbn| geometry.source_symbols(sbn)).collect(),
            open: geometry.blocks(),
        }
    }

    fn see(&mut self, frame: &Frame<'_>) {
        assert!(frame.len <= MTU as usize + 14, "a train, though the cable has no offload");
        let Ok(packet) = Packet::parse(&frame.head[BEFORE..]) else { return };
        self.first.get_or_insert(frame.at);
        let place = self.geometry.symbol_at(packet.offset()).filter(|_| packet.kind() == Kind::Symbol);
        let Some((sbn, esi)) = place else { return };
        let (block, esi) = (sbn.0 as usize, usize::from(esi.0));
        let (word, bit) = (&mut self.seen[block][esi / 64], 1 << (esi % 64));
        if *word & bit != 0 || self.wanted[block] == 0 {
            return;
        }
        *word |= bit;
        self.wanted[block] -= 1;
        if self.wanted[block] == 0 {
            self.open -= 1;
            if self.open == 0 {
                self.last = Some(frame.at);
            }
        }
    }
}
