//! Shell completions: each shell loads its script and is asked what may follow.

use std::{fs, process::Command};

use tempfile::TempDir;

use crate::process::{run, run_wecom_proxy, tool};

/// Runs `script` in a shell that finds the completions of the program in the file `$1`; returns its output.
async fn ask(shell: &str, script: &str) -> String {
    let output = run_wecom_proxy(&["completions", shell]).await;
    assert_eq!(output.status, 0, "{}", output.err);
    let dir = TempDir::new().expect("a directory");
    let file = dir.path().join("_wecom-proxy");
    fs::write(&file, output.out).expect("a file");
    let mut command = Command::new(tool(shell));
    command.env("HOME", dir.path());
    match shell {
        "fish" => command.args(["--no-config", "-c", script]).arg(&file),
        "zsh" => command.args(["-f", "-c", script, "zsh"]).arg(&file),
        _ => command.args(["--norc", "-c", script, "bash"]).arg(&file),
    };
    let output = run(command).await;
    assert_eq!((output.status, output.err.as_str()), (0, ""), "{shell}: {}", output.out);
    output.out
}

#[tokio::test]
async fn bash_completes_behind_subcommands() {
    let script = r#"source "$1"
        complete_words() {
            COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
            "$function" wecom-proxy "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
            echo "${COMPREPLY[*]}"
        }
        definition=$(complete -p wecom-proxy)
        function=${definition#*-F }; function=${function%% *}
        complete_words wecom-proxy ch
        complete_words wecom-proxy check --
        complete_words wecom-proxy --config x.toml check --o
        complete_words wecom-proxy state re
        complete_words wecom-proxy state backup --
        complete_words wecom-proxy tail --f"#;
    let output = ask("bash", script).await;
    let lines: Vec<_> = output.lines().collect();
    assert_eq!(
        (lines[0], lines[2], lines[3], lines[5]),
        ("check", "--online", "rekey", "--failed"),
        "{output}"
    );
    for option in ["--online", "--json", "--config"] {
        assert!(lines[1].split(' ').any(|word| word == option), "{output}");
    }
    assert!(lines[4].contains("--config") && !lines[4].contains("--online"), "{output}");
}

#[tokio::test]
async fn fish_completes_behind_subcommands() {
    let script = "source $argv[1]; complete -C 'wecom-proxy check --o'; complete -C 'wecom-proxy state r'
        complete -C 'wecom-proxy completions '; complete -C 'wecom-proxy --lang '";
    let output = ask("fish", script).await;
    let values: Vec<_> = output.lines().filter(|line| !line.contains('\t')).collect();
    assert_eq!(values, ["bash", "elvish", "fish", "powershell", "zsh", "en", "zh"], "{output}");
    assert!(output.contains("--online") && output.contains("rekey"), "{output}");
    assert!(!output.contains("--failed"), "{output}");
}

#[tokio::test]
async fn zsh_completes_behind_subcommands() {
    // A terminal in a terminal: zsh completes only where it edits a line.
    let script = r#"zmodload zsh/zpty
        zpty shell zsh -f
        zpty -w shell "PS1=; fpath=(${1:h} \$fpath); autoload -U compinit; compinit -u -D"
        zpty -w shell "LISTMAX=1000; zstyle ':completion:*' list-prompt ''; echo rea''dy"
        zpty -r shell output "*ready*"
        zpty -w -n shell "wecom-proxy check --o"$'\t'
        zpty -r shell output "*--online*"
        print -r -- "$output"
        zpty -d shell"#;
    let output = ask("zsh", script).await;
    assert!(output.contains("--online"), "{output}");
}
