//! How long a deployment takes, in virtual time: a million receivers in a minute, no network, no root.

use carousel_proto::tiers::Kind;
use carousel_proto::units::{parse_duration_ms, parse_rate, parse_size};
use carousel_tests::deployment::{
    Class, Deployment, JOIN_LATENCY, Joining, LEAVE_LATENCY, Server, report, run,
};
use carousel_tests::sim::{Loss, cut};
use clap::{Parser, ValueEnum};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Instant;

/// Binary logarithm of the default block length, and the packer's repair symbols in per cent.
const BLOCK: u8 = 22;
const REPAIR: u32 = 105;
const EXAMPLES: &str = "\
Examples:
  deployment --preset routers
  deployment --preset set-top-boxes --receivers 10000 \\
             --server dies=20m,back=40m --server priority=10
  deployment --size 100MB --tier 20M --class loss=1 --join random:10m
  deployment --size 50MB --tier 1M,1M,2M,4M --stacked \\
             --class share=0.3,name=DSL,rate=3M,loss=1,burst=5 \\
             --class share=0.7,name=fibre

Prints tables as Markdown and draws target/bench/deployment-NAME.svg.";

#[derive(Parser)]
#[command(about = "How long a deployment takes, in virtual time", after_help = EXAMPLES)]
struct Options {
    /// A deployment with a name; the other options change it.
    #[arg(long)]
    preset: Option<Preset>,
    /// Object size: 50MB, 1GiB.
    #[arg(long, value_parser = parse_size)]
    size: Option<u64>,
    /// How many receivers [default: 1000].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    receivers: Option<u32>,
    /// Rates of the tiers, lowest first: 1M,4M,10M [default: 10M].
    #[arg(long, value_delimiter = ',', value_parser = parse_rate)]
    tier: Vec<u64>,
    /// The tiers are a ladder, received together; else each brings the whole by itself.
    #[arg(long)]
    stacked: bool,
    /// A class of receivers, may be repeated: name=TEXT, share=NUMBER, loss=PERCENT, burst=PACKETS (mean length),
    /// rate=RATE and queue=DURATION (of the access line), in any order.
    #[arg(long, value_parser = class)]
    class: Vec<Class>,
    /// A server, may be repeated: phase=NUMBER, priority=NUMBER (0 together, more is a spare), dies=DURATION and
    /// back=DURATION (from the beginning on).
    #[arg(long, value_parser = server)]
    server: Vec<Server>,
    /// When they join: once, evenly:DURATION or random:DURATION [default: once].
    #[arg(long, value_parser = joining)]
    join: Option<Joining>,
    /// All chance follows from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// For the picture's file [default: the preset's, or free].
    #[arg(long)]
    name: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Preset {
    /// 500 MB to 2,000 devices at 100 Mbit/s with 2 % loss.
    Routers,
    /// 50 MB to a million set-top boxes on separate tiers of 1, 4 and 10 Mbit/s.
    SetTopBoxes,
}

impl Preset {
    fn deployment(self) -> Result<Deployment, String> {
        Ok(match self {
            Self::Routers => Deployment {
                receivers: 2_000,
                tiers: vec![100_000_000],
                classes: vec![Class {
                    name: "router".into(),
                    loss: Loss::Independent(0.02),
                    ..Class::default()
                }],
                ..free(500_000_000)?
            },
            Self::SetTopBoxes => {
                let class = |name: &str, share, rate, loss| Class {
                    name: name.into(),
                    share,
                    loss,
                    rate: Some(rate),
                    ..Class::default()
                };
                let bursts = |mean, share| Loss::Bursts { mean, share };
                Deployment {
                    receivers: 1_000_000,
                    tiers: vec![1_000_000, 4_000_000, 10_000_000],
                    // What is left of the line while somebody watches television.
                    classes: vec![
                        class("fibre", 0.45, 50_000_000, Loss::Independent(0.0001)),
                        class("VDSL", 0.30, 16_000_000, bursts(5.0, 0.002)),
                        class("ADSL", 0.15, 6_000_000, bursts(5.0, 0.005)),
                        class("long ADSL", 0.05, 2_000_000, bursts(5.0, 0.01)),
                        class("Wi-Fi", 0.05, 20_000_000, bursts(10.0, 0.05)),
                    ],
                    joining: Joining::Randomly(3_600.0),
                    ..free(50_000_000)?
                }
            }
        })
    }

    /// What others say that it takes.
    fn marks(self) -> Vec<(String, f64)> {
        match self {
            Self::Routers => vec![("published elsewhere: 80 s".into(), 80.0)],
            Self::SetTopBoxes => Vec::new(),
        }
    }
}

/// What holds where nothing else is said.
fn free(size: u64) -> Result<Deployment, String> {
    Ok(Deployment {
        geometry: cut(size, BLOCK, REPAIR).map_err(|e| e.to_string())?,
        receivers: 1_000,
        tiers: vec![10_000_000],
        kind: Kind::Separate,
        servers: vec![Server::new(0)],
        classes: vec![Class::default()],
        joining: Joining::Once,
        join_latency: JOIN_LATENCY,
        leave_latency: LEAVE_LATENCY,
        seed: 1,
    })
}

fn main() -> ExitCode {
    let options = Options::parse();
    let marks = options.preset.map(Preset::marks).unwrap_or_default();
    let preset = options.preset.and_then(|preset| preset.to_possible_value());
    let name = match (&options.name, &preset) {
        (Some(name), _) => name,
        (None, Some(preset)) => preset.get_name(),
        (None, None) => "free",
    };
    let began = Instant::now();
    let lived = deployment(&options).and_then(|deployment| Ok((run(&deployment)?, deployment)));
    let (lives, deployment) = match lived {
        Ok(lived) => lived,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    print!("{}", report::tables(&deployment, &lives));
    let picture = report::draw(&deployment, &lives, name, &marks);
    eprintln!("{} in {:.1} s", picture.display(), began.elapsed().as_secs_f64());
    ExitCode::SUCCESS
}

/// The preset, if any, changed by what else was said.
fn deployment(options: &Options) -> Result<Deployment, String> {
    let mut deployment = match options.preset {
        Some(preset) => preset.deployment()?,
        None if options.size.is_none() => {
            return Err("nothing to send: give --size 50MB, or --preset routers".into());
        }
        None => free(0)?,
    };
    if let Some(size) = options.size {
        deployment.geometry = cut(size, BLOCK, REPAIR).map_err(|e| e.to_string())?;
    }
    if let Some(receivers) = options.receivers {
        deployment.receivers = receivers as usize;
    }
    if !options.tier.is_empty() {
        deployment.tiers.clone_from(&options.tier);
    }
    if options.stacked {
        deployment.kind = Kind::Stacked;
    }
    if !options.class.is_empty() {
        deployment.classes.clone_from(&options.class);
    }
    if !options.server.is_empty() {
        deployment.servers.clone_from(&options.server);
    }
    deployment.joining = options.join.unwrap_or(deployment.joining);
    deployment.seed = options.seed;
    Ok(deployment)
}

/// `share=0.3,rate=3M`, pair by pair.
fn pairs(text: &str) -> impl Iterator<Item = Result<(&str, &str), String>> {
    text.split(',')
        .map(|pair| pair.split_once('=').ok_or_else(|| format!("{pair:?}: write it like share=0.3")))
}

fn number<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text:?} is no number: write it like 1 or 0.5, without a unit"))
}

fn span(text: &str) -> Result<f64, String> {
    parse_duration_ms(text).map(|ms| ms as f64 / 1e3)
}

fn class(text: &str) -> Result<Class, String> {
    let (mut class, mut share, mut burst) = (Class::default(), 0.0, None);
    for pair in pairs(text) {
        match pair? {
            ("name", name) => class.name = name.into(),
            ("share", share) => class.share = number(share)?,
            ("loss", percent) => share = number::<f64>(percent)? / 100.0,
            ("burst", mean) => burst = Some(number(mean)?),
            ("rate", rate) => class.rate = Some(parse_rate(rate)?),
            ("queue", queue) => class.queue = span(queue)?,
            (key, _) => return Err(format!("{key:?}: name, share, loss, burst, rate or queue")),
        }
    }
    class.loss = burst.map_or(Loss::Independent(share), |mean| Loss::Bursts { mean, share });
    Ok(class)
}

fn server(text: &str) -> Result<Server, String> {
    let mut server = Server::new(0);
    for pair in pairs(text) {
        match pair? {
            ("phase", phase) => server.number = number(phase)?,
            ("priority", priority) => server.priority = number(priority)?,
            ("dies", moment) => server.dies = span(moment)?,
            ("back", moment) => server.back = span(moment)?,
            (key, _) => return Err(format!("{key:?}: phase, priority, dies or back")),
        }
    }
    Ok(server)
}

fn joining(text: &str) -> Result<Joining, String> {
    match text.split_once(':') {
        None if text == "once" => Ok(Joining::Once),
        Some(("evenly", over)) => Ok(Joining::Evenly(span(over)?)),
        Some(("random", over)) => Ok(Joining::Randomly(span(over)?)),
        _ => Err(format!("{text:?}: write once, evenly:10m or random:10m")),
    }
}
