//! Documents whose commands are run. Before every block of commands stands a comment that a reader does not see and
//! that says where they are run, and how they end:
//!
//! ````text
//! <!-- at desk -->                         to their end, which must be a good one
//! <!-- at device, ends 4 -->               to their end, with this exit code
//! <!-- at server, stays -->                and they go on to the end of the document
//! <!-- not run: it needs a real modem -->  read only, and the reason is said
//! ````
//!
//! A block of ` ```text ` right after one of commands is what they said: each of its lines must be in their output, in
//! this order, and `…` stands for anything. What a reader does by other means, such as copying a file to a host, is a
//! comment of its own: `<!-- at server, unseen: cp ../desk/firmware.carousel . -->`; `<!-- stop at server -->` ends what
//! stays there, `<!-- reload at server -->` sends it SIGHUP, and `<!-- zone: COMMANDS -->` gives the nameserver the records that commands on the server print.

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The line of the document where it begins.
    pub line: usize,
    /// What is done.
    pub action: Action,
}

/// What is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Commands are run.
    Run {
        /// The host.
        at: String,
        /// As a shell takes them.
        commands: String,
        /// How they end.
        end: End,
        /// What they say, if the document says it.
        says: Vec<String>,
    },
    /// The nameserver gets the records that these commands print.
    Zone {
        /// As a shell on the server takes them.
        commands: String,
    },
    /// What stays on a host gets a signal.
    Signal {
        /// The host.
        at: String,
        /// Which one.
        what: Signal,
    },
    /// Commands are not run.
    NotRun {
        /// Why.
        why: String,
    },
}

/// What programs that stay may be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM: to end, well.
    Stop,
    /// SIGHUP.
    Reload,
}

/// How commands end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With an exit code.
    Code(i32),
    /// With the document.
    Stays,
}

/// The steps of a document. The error names the line and what is wrong with it.
pub fn steps(text: &str) -> Result<Vec<Step>, String> {
    let mut steps: Vec<Step> = Vec::new();
    let mut lines = (1..).zip(text.lines());
    // The comment before a block, and whether nothing but empty lines has come since the last block of commands.
    let (mut comment, mut after): (Option<(usize, &str)>, bool) = (None, false);
    while let Some((number, line)) = lines.next() {
        let trimmed = line.trim();
        if let Some(inner) = trimmed.strip_prefix("<!-- ").and_then(|rest| rest.strip_suffix(" -->")) {
            if let Some((head, commands)) = inner.split_once(", unseen: ") {
                steps.push(Step { line: number, action: run(number, head, commands.to_owned())? });
            } else if let Some(action) = signal(inner) {
                steps.push(Step { line: number, action });
            } else if let Some(commands) = inner.strip_prefix("zone: ") {
                steps.push(Step { line: number, action: Action::Zone { commands: commands.to_owned() } });
            } else if inner.starts_with("at ") || inner.starts_with("not run: ") {
                comment = Some((number, inner));
            }
            after = false;
        } else if let Some(kind) = trimmed.strip_prefix("```") {
            let body: Vec<&str> =
                lines.by_ref().map(|(_, line)| line).take_while(|line| line.trim() != "```").collect();
            match (kind, comment.take()) {
                ("sh", Some((at, inner))) => {
                    let action = match inner.strip_prefix("not run: ") {
                        Some(why) => Action::NotRun { why: why.to_owned() },
                        None => run(at, inner, body.join("\n"))?,
                    };
                    after = matches!(action, Action::Run { .. });
                    steps.push(Step { line: number, action });
                }
                ("sh", None) => {
                    return Err(format!("line {number}: no comment says where these commands are run"));
                }
                ("text", None) if after => {
                    if let Some(Step { action: Action::Run { says, .. }, .. }) = steps.last_mut() {
                        *says = body.iter().map(|line| (*line).to_owned()).collect();
                    }
                    after = false;
                }
                (_, Some((at, _))) => return Err(format!("line {at}: no commands follow")),
                (_, None) => after = false,
            }
        } else if !trimmed.is_empty() {
            if let Some((at, _)) = comment {
                return Err(format!("line {at}: no commands follow"));
            }
            after = false;
        }
    }
    Ok(steps)
}

fn signal(inner: &str) -> Option<Action> {
    let (what, at) = match inner.split_once(" at ")? {
        ("stop", at) => (Signal::Stop, at),
        ("reload", at) => (Signal::Reload, at),
        _ => return None,
    };
    Some(Action::Signal { at: at.to_owned(), what })
}

fn run(number: usize, head: &str, commands: String) -> Result<Action, String> {
    let wrong = || {
        format!("line {number}: {head:?} is not \"at HOST\", \"at HOST, ends CODE\" or \"at HOST, stays\"")
    };
    let (at, how) = head.split_once(", ").map_or((head, None), |(at, how)| (at, Some(how)));
    let at = at.strip_prefix("at ").ok_or_else(wrong)?.to_owned();
    let end = match how {
        None => End::Code(0),
        Some("stays") => End::Stays,
        Some(how) => {
            End::Code(how.strip_prefix("ends ").and_then(|code| code.parse().ok()).ok_or_else(wrong)?)
        }
    };
    Ok(Action::Run { at, commands, end, says: Vec::new() })
}

/// The first line of `says` that an output does not have, in its turn.
pub fn unsaid<'a>(says: &'a [String], output: &str) -> Option<&'a str> {
    let mut lines = output.lines();
    says.iter()
        .filter(|line| !line.trim().is_empty())
        .find(|line| !lines.any(|said| fits(line.trim(), said.trim())))
        .map(String::as_str)
}

/// Whether a line is what a document says, in which `…` stands for anything.
fn fits(pattern: &str, line: &str) -> bool {
    let mut parts = pattern.split('…');
    let Some(mut rest) = parts.next().and_then(|first| line.strip_prefix(first)) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        let Some((_, after)) = rest.split_once(part) else { return false };
        rest = after;
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_a_list_of_steps() {
        let text = "\
# Title
<!-- a remark -->
<!-- at server, unseen: cp ../desk/a . -->
<!-- stop at server -->
<!-- zone: print -->
<!-- at server, stays -->
```sh
carousel-server run a
```

```text
sending …
```
Words.
<!-- not run: no modem -->
```sh
dial
```
<!-- at device, ends 4 -->
```sh
get \\
  b
```
```text
no
```
```json
{}
```
";
        let run = |at: &str, commands: &str, end, says: &[&str]| Action::Run {
            at: at.into(),
            commands: commands.into(),
            end,
            says: says.iter().map(|line| (*line).to_owned()).collect(),
        };
        let expected = [
            (3, run("server", "cp ../desk/a .", End::Code(0), &[])),
            (4, Action::Signal { at: "server".into(), what: Signal::Stop }),
            (5, Action::Zone { commands: "print".into() }),
            (7, run("server", "carousel-server run a", End::Stays, &["sending …"])),
            (16, Action::NotRun { why: "no modem".into() }),
            (20, run("device", "get \\\n  b", End::Code(4), &["no"])),
        ];
        assert_eq!(steps(text).unwrap(), expected.map(|(line, action)| Step { line, action }));
    }

    #[test]
    fn what_would_not_be_run_is_an_error() {
        for text in [
            "```sh\nls\n```\n",
            "<!-- at desk -->\nWords.\n```sh\nls\n```\n",
            "<!-- at desk -->\n```text\nls\n```\n",
            "<!-- at desk, sometimes -->\n```sh\nls\n```\n",
        ] {
            assert!(steps(text).is_err(), "{text}");
        }
    }

    #[test]
    fn dots_stand_for_anything() {
        for (pattern, line, expected) in [
            ("a … c", "a b c", true),
            ("a … c", "a c", false),
            ("…", "", true),
            ("a…b…c", "axbxbxc", true),
            ("a", "a b", false),
            ("a …", "a", false),
        ] {
            assert_eq!(fits(pattern, line), expected, "{pattern:?} {line:?}");
        }
        let says = ["one …", "", "three"].map(str::to_owned);
        assert_eq!(unsaid(&says, "zero\none 1\n two\nthree\n"), None);
        assert_eq!(unsaid(&says, "three\none 1\n"), Some("three"));
    }
}
