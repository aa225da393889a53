//! One run: a sender, its receivers, and what came of it.

use crate::net::Net;
use crate::tool::{Receiver, Setting, Tool};
use carousel_tests::lab::{Host, Running};
use nix::sys::signal::Signal;
use std::fs;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// The network is looked at so often.
const STEP: Duration = Duration::from_millis(10);
/// So long after its sender has ended a receiver may still be busy with the file.
const GRACE: Duration = Duration::from_secs(3);
/// Who has sent so many bytes has begun with the file.
const BEGUN: u64 = 50_000;

/// When a receiver is started.
#[derive(Clone, Copy, Debug)]
pub enum Join {
    /// Before the sender, which finds it waiting.
    Before,
    /// When the sender has sent so many times the size of the file.
    After(f64),
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Seconds until each receiver had the whole file, since the run began or, if that is later, since it was started.
    pub seconds: Vec<Option<f64>>,
    /// Bytes of IP packets on the sender's wire until the last of them had it, for each byte of the file.
    pub sent: Option<f64>,
    /// CPU seconds of the sender.
    pub sender_cpu: f64,
    /// CPU seconds of a receiver, on average.
    pub receiver_cpu: f64,
    /// Datagrams that found a receiver's buffer full: the machine's loss, not the network's.
    pub overflowed: u64,
    /// The exit code of a sender that ended by itself although somebody was still waiting.
    pub gave_up: Option<i32>,
}

impl Outcome {
    /// Seconds until the last receiver had the file.
    pub fn last(&self) -> Option<f64> {
        self.seconds.iter().copied().try_fold(0.0, |last, seconds| Some(f64::max(last, seconds?)))
    }

    /// How many have it.
    pub fn served(&self) -> usize {
        self.seconds.iter().flatten().count()
    }
}

/// Runs a tool until all receivers have the file, or cannot get it any more, or `limit` is over.
pub fn run(net: &Net, tool: Tool, setting: &Setting, joins: &[Join], limit: Duration) -> Outcome {
    let dir = net.lab.fresh_dir("run");
    let size = setting.load.size();
    let mut receivers: Vec<Option<Receiver>> = joins.iter().map(|_| None).collect();
    for (n, join) in joins.iter().enumerate() {
        if matches!(join, Join::Before) {
            let receiver = tool.receive(net, setting, n, &dir);
            tool.wait_listening(&net.r[n], &receiver);
            receivers[n] = Some(receiver);
        }
    }

    let full = || net.r[..joins.len()].iter().map(overflowed).sum::<u64>();
    let full_before = full();
    let bytes = || net.s.traffic("eth0").tx_bytes;
    let (base, mut began) = (bytes(), SystemTime::now());
    let sender = tool.send(net, setting);
    let (mut cpu_before, mut sent_before) = (0.0, 0);
    if tool.is_server() {
        tool.wait_serving(net, &sender);
    }
    let (start, mut ended) = (Instant::now(), None);
    let mut course = vec![(began, 0)];
    loop {
        let sent = bytes() - base;
        course.push((SystemTime::now(), sent));
        for (n, join) in joins.iter().enumerate() {
            // A server of requests sends nothing before the first one.
            let due = |share: f64| sent as f64 >= share * size || tool == Tool::Unicast;
            if receivers[n].is_none() && matches!(join, Join::After(share) if due(*share)) {
                if receivers.iter().all(Option::is_none) {
                    // A server was there before: what it did until now is nobody's.
                    (began, cpu_before, sent_before) =
                        (SystemTime::now(), sender.cpu_nanos() as f64 / 1e9, sent);
                }
                receivers[n] = Some(tool.receive(net, setting, n, &dir));
            }
        }
        if ended.is_none() && !sender.is_alive() {
            ended = Some(Instant::now());
        }
        let all = receivers.iter().all(|receiver| receiver.as_ref().is_some_and(Receiver::has_ended));
        let alone = ended.is_some_and(|end| end.elapsed() > GRACE);
        if all || alone || start.elapsed() > limit {
            break;
        }
        thread::sleep(STEP);
    }
    // It waits because we told it to: its time begins with the file.
    if tool == Tool::Udpcast
        && let Some((begun, _)) = course.iter().find(|(_, sent)| *sent > BEGUN)
    {
        began = *begun;
    }

    let gave_up = sender.wait(Duration::ZERO).map(|exit| exit.code());
    sender.kill(Signal::SIGKILL);
    let sender_cpu = cpu(&sender) - cpu_before;
    let receivers: Vec<Receiver> = receivers.into_iter().flatten().collect();
    receivers.iter().for_each(|receiver| receiver.running.kill(Signal::SIGTERM));
    let receiver_cpu: f64 = receivers.iter().map(|receiver| cpu(&receiver.running)).sum();
    if let Some(n) = receivers.iter().position(|receiver| receiver.whole_since(setting.load).is_none()) {
        eprintln!("the sender said: {}", last_words(&sender));
        eprintln!("receiver {n} said: {}", last_words(&receivers[n].running));
    }
    let whole: Vec<_> =
        receivers.iter().map(|r| (r.started.max(began), r.whole_since(setting.load))).collect();
    let mut seconds: Vec<Option<f64>> =
        whole.iter().map(|(from, to)| Some(to.as_ref()?.duration_since(*from).ok()?.as_secs_f64())).collect();
    seconds.resize(joins.len(), None);
    // A sender that repeats itself serves each receiver from its own start on: they are started one after the other, and
    // the milliseconds between them are ours. The others' time begins for all at once.
    let repeats = tool.is_server() && tool != Tool::Unicast;
    let needed = |(from, to): &(SystemTime, Option<SystemTime>)| {
        let before = if repeats { sent_by(&course, *from) } else { sent_before as f64 };
        Some((sent_by(&course, (*to)?) - before) / size)
    };
    let needed: Vec<_> = whole.iter().map(needed).collect();
    let sent = needed.iter().try_fold(0.0, |most, needed| Some(f64::max(most, (*needed)?)));
    let sent = sent.filter(|_| receivers.len() == joins.len());
    let outcome = Outcome {
        overflowed: full() - full_before,
        gave_up: gave_up.filter(|_| sent.is_none()),
        seconds,
        sent,
        sender_cpu,
        receiver_cpu: receiver_cpu / receivers.len().max(1) as f64,
    };
    drop((sender, receivers));
    let _ = fs::remove_dir_all(&dir);
    outcome
}

/// Datagrams that ever found a buffer of this host full, of both versions of IP.
fn overflowed(host: &Host) -> u64 {
    let table = host.within(|| fs::read_to_string("/proc/thread-self/net/snmp")).unwrap_or_default();
    let mut lines = table.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let mut pairs = names.split(' ').zip(values.split(' '));
    let old =
        pairs.find(|(name, _)| *name == "RcvbufErrors").and_then(|(_, value)| value.parse::<u64>().ok());
    host.snmp6().buffer_losses() + old.unwrap_or(0)
}

/// The end of what a program said, on one line; some of them rewrite theirs for ever.
fn last_words(program: &Running) -> String {
    let said = format!("{} {}", program.stdout(), program.stderr());
    let words: Vec<&str> = said.split_ascii_whitespace().collect();
    words[words.len().saturating_sub(60)..].join(" ")
}

/// CPU seconds of a program that has ended or is about to.
fn cpu(program: &Running) -> f64 {
    program.wait(Duration::from_secs(2)).map_or_else(|| program.cpu_seconds(), |exit| exit.cpu_seconds)
}

/// What had been sent by a moment, between two looks in proportion.
fn sent_by(course: &[(SystemTime, u64)], moment: SystemTime) -> f64 {
    let after = course.partition_point(|(at, _)| *at < moment);
    let (Some(&(from, low)), Some(&(to, high))) = (course.get(after.wrapping_sub(1)), course.get(after))
    else {
        return course.get(after).or(course.last()).map_or(0.0, |&(_, sent)| sent as f64);
    };
    let seconds = |a: SystemTime, b: SystemTime| b.duration_since(a).unwrap_or_default().as_secs_f64();
    low as f64 + (high - low) as f64 * seconds(from, moment) / seconds(from, to).max(1e-9)
}
