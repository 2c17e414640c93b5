//! `man`: the manual page, generated from the command line's definition.

use std::io;

use clap_mangen::{
    Man,
    roff::{Roff, bold, roman},
};

use super::{CliError, print};

/// Prints the page in roff: the program's options, then each command with its options.
pub fn man(program: clap::Command) -> Result<(), CliError> {
    let mut page = Vec::new();
    render(program, &mut page).map_err(CliError::of)?;
    print(page)
}

fn render(program: clap::Command, page: &mut Vec<u8>) -> io::Result<()> {
    let name = program.get_name().to_owned();
    let commands: Vec<_> = program.get_subcommands().cloned().collect();
    let man = Man::new(program);
    man.render_title(page)?;
    man.render_name_section(page)?;
    man.render_synopsis_section(page)?;
    man.render_description_section(page)?;
    man.render_options_section(page)?;
    Roff::new().control("SH", ["COMMANDS"]).to_writer(page)?;
    for command in commands {
        render_command(&name, command, page)?;
    }
    render_footer(page)
}

fn render_command(program: &str, command: clap::Command, page: &mut Vec<u8>) -> io::Result<()> {
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let heading = format!("{program} {}", command.get_name());
    Roff::new().control("SS", [heading.as_str()]).text([roman(about)]).to_writer(page)?;
    for subcommand in command.get_subcommands().cloned().collect::<Vec<_>>() {
        render_command(&format!("{program} {}", command.get_name()), subcommand, page)?;
    }
    if command.get_arguments().next().is_none() {
        return Ok(());
    }
    let mut options = Vec::new();
    Man::new(command.disable_help_flag(true)).render_options_section(&mut options)?;
    // A section heading would end the list of commands.
    page.extend(String::from_utf8_lossy(&options).replace(".SH OPTIONS\n", "").into_bytes());
    Ok(())
}

fn render_footer(page: &mut Vec<u8>) -> io::Result<()> {
    let entries = [
        ("SIGNALS", "SIGHUP", "reloads the configuration; an invalid one changes nothing."),
        ("", "SIGUSR1", "opens the file of log.access_file again, as SIGHUP does too."),
        (
            "",
            "SIGTERM, SIGINT",
            "accept no more requests and let those in flight finish; a second one exits at once.",
        ),
        ("EXIT STATUS", "0", "success"),
        ("", "2", "invalid command line or configuration"),
        ("", "1", "anything else"),
        ("ENVIRONMENT", "WECOM_PROXY_CONFIG", "the configuration file, unless --config is given"),
        ("", "RUST_LOG", "overrides log.level"),
    ];
    let mut rest = Roff::new();
    for (section, term, meaning) in entries {
        if !section.is_empty() {
            rest.control("SH", [section]);
        }
        rest.control("TP", []).text([bold(term)]).text([roman(meaning)]);
    }
    rest.to_writer(page)
}
