//! Measures completion time against the ideal through two namespaces, as a Markdown table on stdout.
//!
//! `matrix --size 100MiB --rate 20M,100M --loss 0,1,5,10 --runs 3` is the first table of README.md's figures. Run by hand:
//! it takes minutes, and the machine should do nothing else meanwhile.

use carousel_tests::lab::{Lab, Loss, softnet_drops};
use carousel_tests::scene::{self, SOURCE};
use clap::Parser;
use std::time::Duration;

#[derive(Parser)]
#[command(about = "Completion time against the ideal, through two network namespaces")]
struct Options {
    /// Object size, e.g. 100MiB.
    #[arg(long, default_value = "100MiB", value_parser = size)]
    size: u64,
    /// Rates in bit/s, as the server's --rate takes them.
    #[arg(long, default_value = "20M", value_delimiter = ',')]
    rate: Vec<String>,
    /// Losses in per cent.
    #[arg(long, default_value = "0,1,5,10", value_delimiter = ',')]
    loss: Vec<f64>,
    /// Runs of each.
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// Further options of `carousel-server pack`, as one word: `--pack=--block-size=1MiB`.
    #[arg(long)]
    pack: Vec<String>,
    /// Further options of `carousel-client get`.
    #[arg(long)]
    get: Vec<String>,
}

fn main() {
    let options = Options::parse();
    let Some(lab) = Lab::enter("matrix") else { std::process::exit(77) };
    let (s, c) = scene::pair(&lab);
    c.bill_apart("eth0");
    let pack: Vec<&str> = options.pack.iter().map(String::as_str).collect();
    let get: Vec<&str> = options.get.iter().map(String::as_str).collect();
    let packed = scene::pack(lab.dir(), options.size, &pack);

    println!(
        "| size | rate | loss % | run | seconds | / ideal | packets / symbols | client peak MiB | client CPU s | server CPU s | buffer losses | note |"
    );
    println!("|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|");
    for rate in &options.rate {
        let server = scene::serve(&s, &packed, rate, &[]);
        scene::wait_sending(&s, &server);
        for &loss in &options.loss {
            for run in 1..=options.runs {
                c.loss("eth0", Loss::PerMille((loss * 10.0).round() as u32));
                // Not readiness: the moment of joining is what is drawn at random.
                std::thread::sleep(scene::random_moment(Duration::from_secs(2)));
                let (cpu, drops, full) = (server.cpu_seconds(), softnet_drops(), c.snmp6().buffer_losses());
                let out = lab.file("got");
                let client = scene::get(&c, &[SOURCE], &packed, &out, &get);
                let ideal = options.size as f64 * 8.0 / bits(rate) / (1.0 - loss / 100.0);
                let got = scene::arrive(&client, &packed, &out, Duration::from_secs_f64(ideal * 5.0 + 60.0));
                let note =
                    if softnet_drops() > drops { "inconclusive: the machine dropped packets" } else { "" };
                println!(
                    "| {} | {rate} | {loss} | {run} | {:.2} | {:.4} | {:.4} | {:.1} | {:.2} | {:.2} | {} | {note} |",
                    options.size,
                    got.exit.seconds,
                    got.over_ideal(bits(rate), loss / 100.0),
                    got.packets_per_symbol(),
                    got.exit.peak_rss as f64 / f64::from(1 << 20),
                    got.exit.cpu_seconds,
                    server.cpu_seconds() - cpu,
                    c.snmp6().buffer_losses() - full,
                );
                let _ = std::fs::remove_file(&out);
            }
        }
    }
}

/// `20M` as bit/s, decimal.
fn bits(rate: &str) -> f64 {
    let at = rate.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(rate.len());
    let unit = match &rate[at..] {
        "" => 1.0,
        "k" | "K" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        other => panic!("{other} is no unit of a rate"),
    };
    rate[..at].parse::<f64>().unwrap_or_else(|e| panic!("{rate}: {e}")) * unit
}

/// `100MiB` as bytes.
fn size(text: &str) -> Result<u64, String> {
    let at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let unit = match &text[at..] {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        other => return Err(format!("{other} is no unit of a size")),
    };
    text[..at].parse::<u64>().map(|n| n * unit).map_err(|e| e.to_string())
}
