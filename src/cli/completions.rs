//! `completions`: completion scripts, generated from the command line's definition.

use clap_complete::Shell;

use super::{CliError, print};

/// What clap_complete leaves out for fish: values of arguments, and values of options before a subcommand.
const FISH_VALUES: &str = "complete -c wecom-proxy -n \"__fish_seen_subcommand_from completions\" -f -a \"bash elvish fish powershell zsh\"
complete -c wecom-proxy -l lang -x -a \"en zh\"
";

/// Prints the script of a shell.
pub fn completions(shell: Shell, mut program: clap::Command) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut program, "wecom-proxy", &mut script);
    let script = String::from_utf8_lossy(&script);
    // clap_complete #6421: the script for bash selects a command under one name of the program, and finds it under
    // another, because of the hyphen.
    let mut script = script.replace("wecom__subcmd__proxy", "wecom__proxy");
    if shell == Shell::Fish {
        script += FISH_VALUES;
    }
    print(script)
}
