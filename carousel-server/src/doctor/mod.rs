//! `doctor`: says what keeps a server from sending, or clients from hearing it. It takes the command line of `run`,
//! sends nothing, and listens to nothing. [`facts`] finds out, [`findings`] judges.

mod facts;
mod findings;

use crate::cli;
use crate::config::Config;
use crate::plan::{Plan, Way};
use carousel_doctor::{Id, Report};
use carousel_proto::outcome::Failure;
use facts::Facts;
use serde_json::Map;
use std::io::Write;
use std::path::Path;

/// `doctor`.
pub fn doctor(arguments: &cli::Doctor) -> Result<(), Failure> {
    let run = &arguments.run;
    let plan = Plan::new(run).inspect_err(|failure| {
        if arguments.json {
            let finding = findings::from_message(Id::Bundle, &failure.message);
            let _ = tell(arguments, &Report::new(vec![finding], Some(failure.outcome)));
        }
    })?;
    let servers = match &run.config {
        Some(path) => Config::read(path, &Way::of(run))?.servers,
        None => Vec::new(),
    };
    let facts = Facts::gather(&plan, servers, run.phase.is_some())?;
    let (findings, ended) = findings::judge(&facts);
    tell(arguments, &Report::new(findings, ended))
}

fn tell(arguments: &cli::Doctor, report: &Report) -> Result<(), Failure> {
    let text = if arguments.json { report.json(Map::new()) } else { report.text() };
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|e| Failure::writing(Path::new("standard output"), &e))?;
    report.end()
}
