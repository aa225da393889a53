//! Man pages and shell completions, from the definitions by which both programs read their command lines, and from the
//! commented configurations in `deploy/`.
//!
//! It is no part of the programs, so that they carry neither its code nor its crates. The same definitions give the
//! same bytes; the only date in them is `SOURCE_DATE_EPOCH`.

use anyhow::{Context, Result};
use clap::Command;
use clap_complete::{Shell, generate_to};
use clap_mangen::Man;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// Where the page of a program belongs, and who else has one: the configuration that it reads.
const PROGRAMS: [(&str, &str); 2] =
    [("carousel-server", "carousel-server.toml"), ("carousel-client", "carousel-client.toml")];
const MANUAL: &str = "Carousel";

fn main() -> Result<()> {
    let mut words = std::env::args_os().skip(1);
    let (Some(deploy), Some(out), None) = (words.next(), words.next(), words.next()) else {
        anyhow::bail!(
            "usage: documents DEPLOY OUT: DEPLOY is the folder with the examples, OUT gets the documents"
        );
    };
    let (deploy, out) = (Path::new(&deploy), Path::new(&out));
    let date = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => date(text.parse().with_context(|| format!("SOURCE_DATE_EPOCH {text:?} is no number"))?),
        Err(_) => String::new(),
    };
    for (command, (program, file)) in
        [carousel_server::command(), carousel_client::command()].into_iter().zip(PROGRAMS)
    {
        // What is there from an earlier run may be of a command that is no more.
        let dir = out.join(program);
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| dir.display().to_string())?;
        }
        let [man1, man5, completions] = ["man1", "man5", "completions"].map(|part| dir.join(part));
        for part in [&man1, &man5, &completions] {
            fs::create_dir_all(part).with_context(|| part.display().to_string())?;
        }
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            generate_to(shell, &mut command.clone(), program, &completions)
                .with_context(|| completions.display().to_string())?;
        }
        let example = deploy.join(file.trim_start_matches("carousel-"));
        let configured = example.exists();
        if configured {
            let text = fs::read_to_string(&example).with_context(|| example.display().to_string())?;
            save(&man5.join(format!("{file}.5")), &configuration_page(program, file, &text, &date))?;
        }
        let mut command = command.disable_help_subcommand(true);
        command.build();
        let see = if configured { format!("{file}(5)") } else { String::new() };
        command_pages(&command, program, &see, &date, &man1)?;
    }
    Ok(())
}

/// The pages of a command and of all below it.
fn command_pages(command: &Command, program: &str, see: &str, date: &str, dir: &Path) -> Result<()> {
    let below: Vec<&Command> = command.get_subcommands().filter(|sub| !sub.is_hide_set()).collect();
    for sub in &below {
        command_pages(sub, program, see, date, dir)?;
    }
    let man = Man::new(command.clone());
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    let usage = command.clone().render_usage().to_string();
    let mut page = title(name, 1, program, date).into_bytes();
    man.render_name_section(&mut page)?;
    // As `--help` has it: clap_mangen leaves out what options want.
    page.extend(
        format!(".SH SYNOPSIS\n.nf\n{}\n.fi\n", escaped(usage.trim_start_matches("Usage: "))).bytes(),
    );
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if !below.is_empty() {
        man.render_subcommands_section(&mut page)?;
    }
    let mut page = String::from_utf8(page)?;
    if let Some(rest) = command.get_after_help() {
        page += &after_help(&rest.to_string());
    }
    let others: Vec<String> =
        [if name == program { String::new() } else { format!("{program}(1)") }, see.to_owned()]
            .into_iter()
            .filter(|other| !other.is_empty())
            .collect();
    if !others.is_empty() {
        let _ = writeln!(page, ".SH \"SEE ALSO\"\n{}", others.join(", ").replace('-', "\\-"));
    }
    save(&dir.join(man.get_filename()), &page)
}

/// What stands below the options in `--help`. clap_mangen would run examples together into one paragraph.
fn after_help(text: &str) -> String {
    let mut page = String::new();
    let open = |page: &mut String, title: &str| {
        let _ = writeln!(page, ".SH {title}");
    };
    let (mut titled, mut verbatim) = (false, false);
    for line in text.lines() {
        if verbatim && !line.starts_with(' ') {
            page += ".fi\n.RE\n";
            verbatim = false;
        }
        if line == "Examples:" {
            open(&mut page, "EXAMPLES");
            titled = true;
        } else if let Some(codes) = line.strip_prefix("Exit codes:") {
            open(&mut page, "\"EXIT STATUS\"");
            let _ = writeln!(page, "{}", escaped(codes.trim()));
            titled = true;
        } else if line.is_empty() {
            page += ".PP\n";
        } else {
            if !titled {
                open(&mut page, "NOTES");
                titled = true;
            }
            let is_verbatim = line.starts_with(' ');
            if is_verbatim && !verbatim {
                page += ".RS 2\n.nf\n";
            }
            verbatim = is_verbatim;
            let _ = writeln!(page, "{}", escaped(line.strip_prefix("  ").unwrap_or(line)));
        }
    }
    if verbatim {
        page += ".fi\n.RE\n";
    }
    // Headings and ends of sections make their own space.
    page.replace(".PP\n.SH", ".SH").trim_end_matches(".PP\n").to_owned()
}

/// The page of a configuration: the commented example itself.
fn configuration_page(program: &str, file: &str, example: &str, date: &str) -> String {
    let [bare, program_, file_] = [file.trim_start_matches("carousel-"), program, file].map(escaped);
    let mut page = title(file, 5, program, date);
    let _ = write!(
        page,
        ".SH NAME\n{file_} \\- configuration of {program_}\n.SH SYNOPSIS\n/etc/carousel/{bare}\n.SH DESCRIPTION\n\
         A file in TOML, as \\fB\\-\\-config\\fR takes it. Every key that there is stands in the example below, those in \
         comments with the value that holds without them, or with one that they could have. \
         The package has this example as /usr/share/{program_}/{bare}.\n.SH EXAMPLE\n.nf\n",
    );
    example.lines().for_each(|line| {
        let _ = writeln!(page, "{}", escaped(line));
    });
    let _ = writeln!(page, ".fi\n.SH \"SEE ALSO\"\n{program_}(1)");
    page
}

/// The first line of a page.
fn title(name: &str, section: u8, program: &str, date: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!(".TH {} {section} \"{date}\" \"{program} {version}\" \"{MANUAL}\"\n", name.to_uppercase())
}

/// The day of a moment, given in seconds since 1970.
fn date(seconds: u64) -> String {
    // By the civil calendar, years counted from March (Howard Hinnant's algorithm).
    let days = seconds / 86_400 + 719_468;
    let of_era = days % 146_097;
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = days / 146_097 * 400 + year_of_era + u64::from(month < 3);
    format!("{year}-{month:02}-{day:02}")
}

/// A line that roff shows as it is.
fn escaped(line: &str) -> String {
    let text = line
        .replace('\\', "\\e")
        .replace('-', "\\-")
        .replace('\'', "\\(aq")
        .replace('`', "\\(ga")
        .replace('^', "\\(ha")
        .replace('~', "\\(ti");
    if text.starts_with('.') { format!("\\&{text}") } else { text }
}

fn save(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| path.display().to_string())
}
