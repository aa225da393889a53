//! What the contenders have to do, and how it is judged. The bars are for us; the others' figures stand beside.

use crate::Plan;
use crate::measure::{Join, Outcome, run};
use crate::net::Net;
use crate::report::{Section, bytes, judge, median, seconds};
use crate::tool::{Load, Setting, TIERS, Tool};
use carousel_tests::chart::{Axis, Bar, Bars, Joined, Line, Lines};
use carousel_tests::scene::random_moment;
use clap::ValueEnum;
use std::time::Duration;

/// Of everything but the tiers and the bytes by the number of receivers, in Mbit/s.
const RATE: u32 = 100;
/// For those: sixteen receivers share the processors of one machine, which must not be what is measured.
const CALM: u32 = 20;
/// Receivers in the parts that do not vary their number.
const CROWD: usize = 8;
/// What we must beat.
const RIVALS: [Tool; 3] = [Tool::Uftp, Tool::Udpcast, Tool::Norm];
/// Of the slow link, in bit/s.
const SLOW: u64 = 19_000_000;

/// A run as it is written down.
pub struct Note {
    /// Which part, and which case of it.
    pub case: String,
    /// Who.
    pub tool: Tool,
    /// How it went.
    pub outcome: Outcome,
}

/// All runs so far; each part adds its own.
pub type Notes = Vec<Note>;

/// Does a run and writes it down.
fn play(
    net: &Net,
    tool: Tool,
    setting: &Setting,
    joins: &[Join],
    case: &str,
    limit: Duration,
    notes: &mut Notes,
) {
    let outcome = run(net, tool, setting, joins, limit);
    let (last, sent) = (seconds(outcome.last()), bytes(outcome.sent));
    let (served, all) = (outcome.served(), outcome.seconds.len());
    eprintln!("{case}: {}: {served} of {all} served in {last} s, {sent} x the file sent", tool.name());
    notes.push(Note { case: case.to_owned(), tool, outcome });
}

/// The outcomes of a tool in a case.
fn of<'a>(notes: &'a Notes, case: &'a str, tool: Tool) -> impl Iterator<Item = &'a Outcome> + Clone {
    notes.iter().filter(move |note| note.case == case && note.tool == tool).map(|note| &note.outcome)
}

/// A moment that differs from run to run, as a share of the file.
fn any_time() -> f64 {
    random_moment(Duration::from_secs(1)).as_secs_f64()
}

/// Everybody at once: before a sender that can be waited for, else at any time.
fn together(tool: Tool, receivers: usize) -> Vec<Join> {
    vec![if tool.is_server() { Join::After(any_time()) } else { Join::Before }; receivers]
}

/// `3 of 8`, over all runs.
fn served<'a>(outcomes: impl Iterator<Item = &'a Outcome> + Clone) -> String {
    let all: usize = outcomes.clone().map(|outcome| outcome.seconds.len()).sum();
    let served: usize = outcomes.clone().map(Outcome::served).sum();
    let codes: Vec<i32> = outcomes.filter_map(|outcome| outcome.gave_up).collect();
    match codes.first() {
        None => format!("{served} of {all}"),
        Some(code) => format!("{served} of {all}; the sender ended with exit code {code}"),
    }
}

/// Eight receivers, each with its own loss.
pub fn loss(net: &Net, load: &Load, plan: &Plan, notes: &mut Notes) -> Section {
    let tools =
        plan.of(&[Tool::Carousel, Tool::Uftp, Tool::Udpcast, Tool::Norm, Tool::NormLoop, Tool::Uncoded]);
    let case = |percent: u32| format!("loss {percent} %");
    for round in 0..plan.rounds {
        for &percent in plan.losses {
            net.lose(percent * 10);
            for &tool in &tools {
                if round == 0 || tool == Tool::Carousel || RIVALS.contains(&tool) {
                    let setting = Setting { load, receivers: CROWD, rate: RATE, tiers: false };
                    play(net, tool, &setting, &together(tool, CROWD), &case(percent), plan.limit, notes);
                }
            }
        }
    }

    let last = |percent, tool| median(of(notes, &case(percent), tool).map(Outcome::last));
    let sent = |percent, tool| median(of(notes, &case(percent), tool).map(|outcome| outcome.sent));
    let gigabytes = load.size() / 1e9;
    let sender_cpu = |percent, tool| {
        median(of(notes, &case(percent), tool).map(|outcome| Some(outcome.sender_cpu / gigabytes)))
    };
    let receiver_cpu = |percent, tool| {
        median(of(notes, &case(percent), tool).map(|outcome| Some(outcome.receiver_cpu / gigabytes)))
    };
    let mut section = Section::new(
        "Loss",
        &format!(
            "A file of {:.0} MiB to {CROWD} receivers at 100 Mbit/s, each losing packets on its own. Time: until the last \
             of them has the file. Sent: bytes of IP packets on the sender's wire until then, for each byte of the file. \
             Datagrams that found the buffer of a receiver full were lost for want of CPU. Bars for the bytes: 1.10 without loss, else 1.06/(1-p).",
            load.size() / f64::from(1 << 20)
        ),
        &[
            "loss",
            "tool",
            "runs",
            "served",
            "time, s",
            "fastest, slowest",
            "sent",
            "CPU s/GB, sender",
            "receiver",
            "found buffers full",
            "verdict",
        ],
    );
    for &percent in plan.losses {
        let share = 1.0 - f64::from(percent) / 100.0;
        for &tool in &tools {
            let name = case(percent);
            let outcomes = of(notes, &name, tool);
            let times = outcomes.clone().filter_map(Outcome::last);
            let (low, high) = times.fold((f64::INFINITY, 0.0), |(l, h), t| (f64::min(l, t), f64::max(h, t)));
            let overflowed: u64 = outcomes.clone().map(|outcome| outcome.overflowed).sum();
            let verdict = if tool == Tool::Carousel {
                let bar = if percent == 0 { 1.10 } else { 1.06 / share };
                let mine = |of: &dyn Fn(u32, Tool) -> Option<f64>| of(percent, tool).unwrap_or(f64::INFINITY);
                let beaten = |of: &dyn Fn(u32, Tool) -> Option<f64>| {
                    let better =
                        |rival: &&Tool| of(percent, **rival).is_some_and(|theirs| theirs <= mine(of));
                    RIVALS.iter().filter(better).map(|rival| rival.name()).collect::<Vec<_>>()
                };
                let word = |what: &str, by: &[&str]| match by {
                    [] => judge(true, what),
                    _ => judge(false, &format!("{what}: not better than {}", by.join(", "))),
                };
                format!(
                    "{}; {}; {}",
                    word("time", &beaten(&last)),
                    word("bytes", &beaten(&sent)),
                    judge(mine(&sent) <= bar, &format!("bytes within {bar:.3}"))
                )
            } else {
                String::new()
            };
            section.row(&[
                &format!("{percent} %"),
                tool.name(),
                &outcomes.clone().count().to_string(),
                &served(outcomes),
                &seconds(last(percent, tool)),
                &if high > 0.0 { format!("{low:.2}, {high:.2}") } else { String::new() },
                &bytes(sent(percent, tool)),
                &seconds(sender_cpu(percent, tool)),
                &seconds(receiver_cpu(percent, tool)),
                &overflowed.to_string(),
                &verdict,
            ]);
        }
    }

    let lines = |value: &dyn Fn(u32, Tool) -> Option<f64>| -> Vec<Line> {
        let points = |tool| plan.losses.iter().map(|&p| (f64::from(p), value(p, tool))).collect();
        let line = |&tool: &Tool| Line {
            name: tool.name().to_owned(),
            colour: tool.colour(),
            joined: Joined::Straight,
            points: points(tool),
        };
        tools.iter().map(line).collect()
    };
    let ideal = load.packet_bytes() * 8.0 / (f64::from(RATE) * 1e6);
    let computed = |least: f64| Line {
        name: "a perfect code".to_owned(),
        colour: "#888888",
        joined: Joined::Dashed,
        points: (0..=20).map(|p| (f64::from(p), Some(least / (1.0 - f64::from(p) / 100.0)))).collect(),
    };
    let chart = |title: &str, y: Axis, lines: Vec<Line>| {
        let title = format!("{title}, {CROWD} receivers");
        Lines { title, x: Axis::linear("loss at each receiver in %"), y, lines }.svg()
    };
    let with = |mut lines: Vec<Line>, more: Line| {
        lines.push(more);
        lines
    };
    let time = with(lines(&last), computed(ideal));
    let doubling = Axis::doubling("bytes on the sender's wire / file");
    let wire = with(lines(&sent), computed(load.packet_bytes() / load.size()));
    section.chart("time", chart("Time until the last receiver has the file", Axis::linear("seconds"), time));
    section.chart("bytes", chart("What the sender sends until then", doubling, wire));
    section.chart("cdf", cdf(notes, &tools, plan));
    section.chart("cpu", processors(&tools, &|tool| sender_cpu(0, tool), &|tool| receiver_cpu(0, tool)));
    section
}

/// How many of the receivers have the file, over time.
fn cdf(notes: &Notes, tools: &[Tool], plan: &Plan) -> String {
    // 10 % where that is measured.
    let percent = plan.losses.iter().copied().find(|percent| *percent >= 10).unwrap_or(0);
    let case = format!("loss {percent} %");
    let times = |tool| of(notes, &case, tool).flat_map(|outcome| outcome.seconds.iter().flatten().copied());
    let end = tools.iter().flat_map(|tool| times(*tool)).fold(0.0, f64::max) * 1.03;
    let line = |&tool: &Tool| {
        let all = of(notes, &case, tool).map(|outcome| outcome.seconds.len()).sum::<usize>().max(1) as f64;
        let share = |done: usize| Some(done as f64 / all * 100.0);
        let mut done: Vec<f64> = times(tool).collect();
        done.sort_by(f64::total_cmp);
        let mut points = vec![(0.0, share(0))];
        points.extend((1..).zip(&done).map(|(n, &time)| (time, share(n))));
        points.push((end, share(done.len())));
        Line { name: tool.name().to_owned(), colour: tool.colour(), joined: Joined::Steps, points }
    };
    Lines {
        title: format!("Receivers that have the file at {percent} % loss, all runs"),
        x: Axis::linear("seconds"),
        y: Axis::linear("% of the receivers"),
        lines: tools.iter().map(line).collect(),
    }
    .svg()
}

fn processors(
    tools: &[Tool],
    sender: &dyn Fn(Tool) -> Option<f64>,
    receiver: &dyn Fn(Tool) -> Option<f64>,
) -> String {
    let bar = |&tool: &Tool| Bar {
        name: tool.name().to_owned(),
        colour: tool.colour(),
        values: vec![sender(tool), receiver(tool)],
    };
    Bars {
        title: "CPU time at 100 Mbit/s, no loss".to_owned(),
        groups: vec!["sender".to_owned(), "receiver".to_owned()],
        y: Axis::linear("seconds for each GB of the file"),
        bars: tools.iter().map(bar).collect(),
    }
    .svg()
}

/// A receiver that comes late. The others' senders find one waiting, as they want; the late one is the second.
pub fn late(net: &Net, load: &Load, plan: &Plan, notes: &mut Notes) -> Section {
    let tools = plan.of(&[Tool::Carousel, Tool::NormLoop, Tool::Norm, Tool::Uftp, Tool::Udpcast]);
    let losses = [0, 10];
    let case = |percent: u32| format!("late {percent} %");
    for round in 0..plan.rounds {
        for percent in losses {
            net.lose(percent * 10);
            for &tool in tools.iter().filter(|tool| round == 0 || **tool == Tool::Carousel) {
                let joins = match tool {
                    Tool::Carousel | Tool::NormLoop => vec![Join::After(any_time())],
                    _ => vec![Join::Before, Join::After(1.0 / 3.0)],
                };
                // Its own receivers it waits for, but not for the late one.
                let setting = Setting { load, receivers: 1, rate: RATE, tiers: false };
                play(net, tool, &setting, &joins, &case(percent), plan.limit, notes);
            }
        }
    }

    let mut section = Section::new(
        "Late",
        "A receiver that comes when the sender is at work: a carousel at a random moment, the others' senders when a \
         third of the file is sent. Ideal: the packets that the file needs, at 100 Mbit/s, over (1-p). The bar is 1.05.",
        &["loss", "tool", "runs", "late ones served", "time, s", "of the ideal", "verdict"],
    );
    let ideal = |percent: u32| {
        load.packet_bytes() * 8.0 / (f64::from(RATE) * 1e6) / (1.0 - f64::from(percent) / 100.0)
    };
    let late_one = |outcome: &Outcome| outcome.seconds.last().copied().flatten();
    let over = |percent, tool| {
        median(of(notes, &case(percent), tool).map(late_one)).map(|time| time / ideal(percent))
    };
    for percent in losses {
        for &tool in &tools {
            let name = case(percent);
            let outcomes = of(notes, &name, tool);
            let (all, got) = (outcomes.clone().count(), outcomes.clone().filter_map(late_one).count());
            let over = over(percent, tool);
            section.row(&[
                &format!("{percent} %"),
                tool.name(),
                &all.to_string(),
                &format!("{got} of {all}"),
                &seconds(median(outcomes.map(late_one))),
                &bytes(over),
                &if tool == Tool::Carousel {
                    judge(over.is_some_and(|over| over <= 1.05), "")
                } else {
                    String::new()
                },
            ]);
        }
    }
    let bar = |&tool: &Tool| Bar {
        name: tool.name().to_owned(),
        colour: tool.colour(),
        values: losses.map(|percent| over(percent, tool)).into(),
    };
    let chart = Bars {
        title: "A receiver that comes late".to_owned(),
        groups: losses.map(|percent| format!("{percent} % loss")).into(),
        y: Axis::linear("its time / ideal"),
        bars: tools.iter().map(bar).collect(),
    };
    section.chart("late", chart.svg());
    section
}

/// A receiver behind a slow link beside a fast one, and the fast one alone.
pub fn slow(net: &Net, load: &Load, plan: &Plan, notes: &mut Notes) -> Section {
    let tools = plan.of(&[Tool::Carousel, Tool::Uftp, Tool::Udpcast, Tool::Norm]);
    let (alone, beside) = ("fast alone", "fast and slow");
    net.lose(0);
    net.slow_down(1, SLOW);
    for round in 0..plan.rounds {
        for &tool in tools.iter().filter(|tool| round == 0 || **tool == Tool::Carousel) {
            for (case, receivers) in [(alone, 1), (beside, 2)] {
                let setting = Setting { load, receivers, rate: RATE, tiers: true };
                play(net, tool, &setting, &together(tool, receivers), case, plan.limit, notes);
            }
        }
    }
    net.speed_up(1);

    let mut section = Section::new(
        "Slow",
        &format!(
            "A file of {:.0} MiB to a fast receiver and to one behind a link of 19 Mbit/s. We send two tiers, {} and {}bit/s, \
             and each receiver takes the one that fits; the others send at 100 Mbit/s to both. Bars: the fast one is not \
             slowed by 1 %, and the slow one is served.",
            load.size() / f64::from(1 << 20),
            TIERS[0],
            TIERS[1]
        ),
        &[
            "tool",
            "runs",
            "fast alone, s",
            "fast beside slow, s",
            "ratio",
            "slow, s",
            "sent to both",
            "verdict",
        ],
    );
    let fast =
        |case, tool| median(of(notes, case, tool).map(|outcome| outcome.seconds.first().copied().flatten()));
    let slow =
        |tool| median(of(notes, beside, tool).map(|outcome| outcome.seconds.get(1).copied().flatten()));
    for &tool in &tools {
        let ratio = fast(alone, tool).and_then(|alone| Some(fast(beside, tool)? / alone));
        let well = ratio.is_some_and(|ratio| ratio <= 1.01) && slow(tool).is_some();
        section.row(&[
            tool.name(),
            &of(notes, beside, tool).count().to_string(),
            &seconds(fast(alone, tool)),
            &seconds(fast(beside, tool)),
            &bytes(ratio),
            &seconds(slow(tool)),
            &bytes(median(of(notes, beside, tool).map(|outcome| outcome.sent))),
            &if tool == Tool::Carousel { judge(well, "") } else { String::new() },
        ]);
    }
    let bar = |&tool: &Tool| Bar {
        name: tool.name().to_owned(),
        colour: tool.colour(),
        values: vec![fast(alone, tool), fast(beside, tool), slow(tool)],
    };
    let chart = Bars {
        title: "A slow receiver (19 Mbit/s) beside a fast one".to_owned(),
        groups: ["the fast one alone", "the fast one beside it", "the slow one"].map(str::to_owned).into(),
        y: Axis::linear("seconds"),
        bars: tools.iter().map(bar).collect(),
    };
    section.chart("slow", chart.svg());
    section
}

/// What more receivers cost.
pub fn receivers(net: &Net, load: &Load, plan: &Plan, notes: &mut Notes) -> Section {
    let tools = plan.of(Tool::value_variants());
    let case = |n: usize| format!("{n} receivers");
    net.lose(50);
    // What is counted is bytes, which do not depend on the machine: one round tells all.
    for &n in plan.receivers {
        for &tool in &tools {
            let setting = Setting { load, receivers: n, rate: CALM, tiers: false };
            play(net, tool, &setting, &together(tool, n), &case(n), plan.limit, notes);
        }
    }

    let mut columns = vec!["tool".to_owned()];
    columns.extend(plan.receivers.iter().map(|n| case(*n)));
    columns.push("verdict".to_owned());
    let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
    let mut section = Section::new(
        "Receivers",
        &format!(
            "A file of {:.0} MiB at {CALM} Mbit/s and 5 % loss: bytes on the sender's wire until the last receiver has it, for each byte of the \
             file. The bar: with the most receivers no more than 1.05 times what one needs.",
            load.size() / f64::from(1 << 20)
        ),
        &columns,
    );
    let sent = |n, tool| median(of(notes, &case(n), tool).map(|outcome| outcome.sent));
    for &tool in &tools {
        let values: Vec<Option<f64>> = plan.receivers.iter().map(|&n| sent(n, tool)).collect();
        let growth = values.last().copied().flatten().zip(values.first().copied().flatten());
        let growth = growth.map(|(most, one)| most / one);
        let mut cells = vec![tool.name().to_owned()];
        cells.extend(values.into_iter().map(bytes));
        cells.push(match (tool, growth) {
            (Tool::Carousel, Some(growth)) => judge(growth <= 1.05, &format!("{growth:.3} times")),
            (_, Some(growth)) => format!("{growth:.2} times"),
            (_, None) => String::new(),
        });
        section.row(&cells.iter().map(String::as_str).collect::<Vec<_>>());
    }
    let line = |&tool: &Tool| Line {
        name: tool.name().to_owned(),
        colour: tool.colour(),
        joined: Joined::Straight,
        points: plan.receivers.iter().map(|&n| (n as f64, sent(n, tool))).collect(),
    };
    let chart = Lines {
        title: "What the sender sends, 5 % loss".to_owned(),
        x: Axis::doubling("receivers"),
        y: Axis::doubling("bytes on the sender's wire / file"),
        lines: tools.iter().map(line).collect(),
    };
    section.chart("receivers", chart.svg());
    section
}
