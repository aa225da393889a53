//! The command lines of what the agent starts, and what those programs say.

use super::agent::{Ended, Looked, Received};
use super::config::{Config, Item, Place};
use super::record::{Record, Release};
use carousel_proto::outcome::Outcome;
use serde_json::Value;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::{Command, ExitStatus};

/// `discover`, for an item that is found by name.
pub fn ask(program: &Path, config: &Config, service: &str) -> Command {
    let mut command = Command::new(program);
    command.args(["discover", service, "--json"]);
    dns(&mut command, config);
    command
}

fn dns(command: &mut Command, config: &Config) {
    if let Some(nameserver) = config.nameserver {
        command.args(["--nameserver", &nameserver.to_string()]);
    }
    if let Some(anchor) = &config.trust_anchor {
        command.arg("--trust-anchor").arg(anchor);
    }
}

/// `get`, to look or to receive.
pub fn get(program: &Path, config: &Config, item: &Item, record: &Record, look: bool) -> Command {
    let mut command = Command::new(program);
    command.args(["get", "--json", "--quiet", "--stage", "--force"]).args(&item.get);
    match &item.place {
        Place::Service(service) => {
            command.arg(service);
            dns(&mut command, config);
        }
        Place::Static { sources, groups, port, announce } => {
            let (groups, port) = match (look, announce) {
                (true, Some((group, port))) => (std::slice::from_ref(group), port),
                (true, None) => (&groups[..1], port),
                (false, _) => (&groups[..], port),
            };
            command.args(sources.iter().map(|source| format!("--source={source}")));
            command.args(groups.iter().map(|group| format!("--group={group}")));
            command.args(["--port", &port.to_string()]);
        }
    }
    if let Some(interface) = &item.interface {
        command.args(["--interface", interface]);
    }
    let tier = match (look, &item.place) {
        // The lowest rate that there is: a look wants the manifest alone.
        (true, Place::Service(_)) => Some("0"),
        (true, Place::Static { .. }) => None,
        (false, _) => item.tier.as_deref(),
    };
    command.args(tier.map(|tier| format!("--tier={tier}")));
    for key in &config.key {
        command.arg("--key").arg(key);
    }
    if let Some(keys) = &config.keys {
        command.arg("--keys").arg(keys);
    }
    command.arg("--state").arg(&config.state).arg("--out").arg(&item.out);
    // The object's own name, also where the folder of the release before is.
    let is_place = item.out.as_os_str().as_encoded_bytes().ends_with(b"/");
    command.args((!is_place).then_some("--no-target-directory"));
    if config.require_heartbeat {
        command.arg("--require-heartbeat");
    }
    // With `=`, so that nothing that begins with a dash is taken for an option.
    command.args(item.compatible.iter().map(|kind| format!("--compatible={kind}")));
    command.arg(format!("--device-id={}", config.device_id));
    command.args(record.newer_than().map(|(key_id, seq)| format!("--newer-than={seq}@{key_id}")));
    if look {
        command.args(["--look", "--timeout", &format!("{}ms", item.listen)]);
    } else {
        command.args(["--timeout", &format!("{}ms", item.timeout)]);
        if let Some(seed) = item.seed.as_deref().filter(|seed| is_seed(seed)) {
            command.arg("--seed").arg(seed);
        }
        if let Some(metrics) = &item.metrics {
            command.arg("--metrics").arg(metrics);
        }
    }
    command
}

/// What `--seed` takes, a slot of the device too. Before the first release there may be none.
fn is_seed(path: &Path) -> bool {
    path.metadata().is_ok_and(|seed| seed.is_file() || seed.file_type().is_block_device())
}

/// A command of the user, with the environment of `get --on-complete`.
pub fn foreign(line: &str, release: &Release) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", line])
        .env("CAROUSEL_PATH", &release.path)
        .env("CAROUSEL_NAME", &release.name)
        .env("CAROUSEL_SEQ", release.seq.to_string())
        .env("CAROUSEL_DIGEST", &release.digest)
        .env("CAROUSEL_SIZE", release.size.to_string());
    command
}

/// What one of our programs has said so far, as far as it matters.
#[derive(Debug, Default)]
pub struct Said {
    /// The answer of `discover`.
    answer: Option<Value>,
    offer: Option<Value>,
    refused: Option<Value>,
    /// The line that the program ended with.
    last_words: String,
}

/// What to do about a line at once.
pub enum Line {
    /// Nothing.
    Noted,
    /// The object has its name.
    Whole(Release),
    /// Symbols that are there, symbols needed, bits per second.
    Progress(Value),
}

impl Said {
    /// A line on stdout, which came at `unix`, seconds since 1970.
    pub fn handle_out(&mut self, line: &str, unix: u64) -> Line {
        let Ok(value) = serde_json::from_str::<Value>(line) else { return Line::Noted };
        match value["event"].as_str() {
            None => self.answer = Some(value),
            Some("offer") => self.offer = Some(value),
            Some("refused") => self.refused = Some(value),
            Some("started" | "progress") => return Line::Progress(value),
            Some("done") => return release(&value, unix).map_or(Line::Noted, Line::Whole),
            Some(_) => {}
        }
        Line::Noted
    }

    /// A line on stderr.
    pub fn handle_err(&mut self, line: &str) {
        if let Some(words) = line.strip_prefix("carousel-client: ") {
            words.clone_into(&mut self.last_words);
        }
    }

    fn why(&self, status: ExitStatus) -> String {
        match self.last_words.is_empty() {
            true => super::child::show(status),
            false => self.last_words.clone(),
        }
    }

    /// What DNS knows of the newest release.
    pub fn asked(&self, status: ExitStatus) -> Result<Option<u64>, String> {
        let services = self.answer.as_ref().and_then(|answer| answer["services"].as_array());
        match (status.success(), services.map(Vec::as_slice)) {
            (true, Some([service])) => Ok(service["seq"].as_u64()),
            (true, Some(services)) => {
                let names: Vec<&str> = services.iter().filter_map(|s| s["name"].as_str()).collect();
                Err(format!("there are {} services; watch one of them: {}", names.len(), names.join(", ")))
            }
            _ => Err(self.why(status)),
        }
    }

    /// What a look brought.
    pub fn looked(&self, status: ExitStatus) -> Looked {
        if let (true, Some(offer)) = (status.success(), &self.offer)
            && let (Some(seq), Some(key_id)) = (offer["seq"].as_u64(), offer["key_id"].as_str())
        {
            return Looked::Offer { seq, key_id: key_id.to_owned() };
        }
        let message = self.why(status);
        match &self.refused {
            Some(refused) if status.code() == refused["code"].as_i64().map(|code| code as i32) => {
                Looked::Refused { again: refused["again"].as_u64(), message }
            }
            _ => Looked::Nothing(message),
        }
    }

    /// How a transfer ended.
    pub fn received(&self, status: ExitStatus) -> Received {
        const ELSEWHERE: [Outcome; 5] =
            [Outcome::Usage, Outcome::Untrusted, Outcome::Stale, Outcome::NoSignal, Outcome::TryAgain];
        if status.success() {
            return Received::Whole;
        }
        let elsewhere = ELSEWHERE.iter().any(|outcome| status.code() == Some(*outcome as i32));
        if elsewhere { Received::Elsewhere(self.why(status)) } else { Received::Failed(self.why(status)) }
    }
}

/// How a command of the user ended.
pub fn ended(status: ExitStatus, overdue: bool) -> Ended {
    match status.code() {
        Some(0) => Ended::Well,
        _ if overdue => Ended::Badly("it took longer than command_timeout".to_owned()),
        Some(code) if code == Outcome::TryAgain as i32 => Ended::Later,
        _ => Ended::Badly(super::child::show(status)),
    }
}

/// The event `done`. `None`, if it is not what we know.
fn release(done: &Value, unix: u64) -> Option<Release> {
    let text = |key: &str| done[key].as_str().map(str::to_owned);
    Some(Release {
        name: text("name")?,
        seq: done["seq"].as_u64()?,
        digest: text("digest")?,
        size: done["size"].as_u64()?,
        path: text("path")?.into(),
        key_id: text("key_id")?,
        not_before: done["apply"]["not_before"].as_u64(),
        jitter: done["apply"]["jitter"].as_u64().and_then(|jitter| jitter.try_into().ok()),
        received: unix,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_there_and_no_folder() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        assert!(is_seed(&here.join("Cargo.toml")));
        assert!(!is_seed(here) && !is_seed(&here.join("nothing")) && !is_seed(Path::new("/dev/null")));
    }
}
