//! `config`, and `check` of files without their secrets or from the standard input.

use std::{collections::BTreeSet, fs, process::Command};

use serde_json::Value;
use tempfile::TempDir;

use crate::process::{ExitOutput, python, run, run_wecom_proxy, tool, wecom_proxy};

const REPOSITORY_CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/proxy.toml");

/// Two agents and a client whose secrets are not set here.
const CONFIG: &str =
    "[server]\nlisten = \"0.0.0.0:8080\"\ntls = { cert = \"/no/cert.pem\", key = \"/no/key.pem\" }
[agents.hr]
corpid = \"ww1\"
secret = { env = \"NO_SUCH_SECRET\" }
[agents.it]
corpid = \"ww1\"
secret = { file = \"/no/such/secret\" }
[clients.billing]
key = { env = \"NO_SUCH_KEY\" }
agents = [\"hr\"]
";

/// Runs the program with `text` as its standard input.
async fn run_with_stdin(text: &str, arguments: &str) -> ExitOutput {
    let dir = TempDir::new().expect("a directory");
    fs::write(dir.path().join("in.toml"), text).expect("a file");
    let mut command = Command::new(tool("bash"));
    let script = format!("\"$0\" {arguments} < in.toml");
    command.args(["-c", &script]).arg(wecom_proxy(&[]).get_program()).current_dir(dir.path());
    command.env_remove("WECOM_PROXY_CONFIG");
    run(command).await
}

#[tokio::test]
async fn check_without_secrets_reads_none() {
    let output = run_with_stdin(CONFIG, "check --no-secrets -").await;
    assert_eq!(output.status, 0, "{output:?}");
    for expected in ["not read", "billing", "stdin is valid"] {
        assert!(output.out.contains(expected), "{expected}: {}", output.out);
    }
    assert!(
        output.err.contains("server.tls.cert") && output.err.contains("cannot be read"),
        "{}",
        output.err
    );

    let output = run_with_stdin(CONFIG, "check --config -").await;
    assert_eq!(output.status, 2, "{output:?}");
    let keys = [
        "server.tls.cert",
        "server.tls.key",
        "agents.hr.secret.env",
        "agents.it.secret.file",
        "clients.billing.key.env",
    ];
    for (line, key) in output.err.lines().zip(keys) {
        assert!(line.contains("stdin:") && line.contains(key), "{key}: {}", output.err);
    }
    assert_eq!(output.err.lines().count(), keys.len(), "{}", output.err);

    let wrong = CONFIG.replace("[\"hr\"]", "[\"hrr\"]").replace("0.0.0.0:8080", "nowhere");
    let output = run_with_stdin(&wrong, "check --no-secrets --json -").await;
    assert_eq!(output.status, 2, "{output:?}");
    let result: Value = serde_json::from_str(&output.out).expect("JSON");
    assert_eq!(
        (&result["error"], result["errors"].as_array().map(Vec::len)),
        (&result["errors"][0], Some(2)),
        "{result}"
    );
    assert_eq!(result["errors"][1]["key"], "clients.billing.agents[0]", "{result}");
    let both = run_with_stdin(CONFIG, "check --no-secrets --online -").await;
    assert_eq!(both.status, 2, "{both:?}");
}

#[tokio::test]
async fn schema_accepts_the_example_and_refuses_a_mistake() {
    let schema = run_wecom_proxy(&["config", "schema"]).await;
    assert_eq!(schema.status, 0, "{}", schema.err);
    let script = "import json, sys, tomllib, jsonschema
schema = json.loads(sys.argv[1])
jsonschema.Draft202012Validator.check_schema(schema)
validator = jsonschema.Draft202012Validator(schema)
lines = open(sys.argv[2]).read().splitlines()
# Every setting, also those that are off.
all_settings = '\\n'.join(line[1:] if line[:1] == '#' and (line[1:2].islower() or line[1:2] == '[') else line for line in lines)
for text in '\\n'.join(lines), all_settings:
    errors = [error.message for error in validator.iter_errors(tomllib.loads(text))]
    assert not errors, errors
for mistake in '[server]\\nlisten = 1', '[agents.a]\\ncorpid = \"w\"\\nsecrt = \"x\"', '[server]\\nidle_timeout = \"75\"', 'agent = 1':
    assert list(validator.iter_errors(tomllib.loads(mistake))), mistake";
    let mut check = Command::new(python());
    check.args(["-c", script, &schema.out, REPOSITORY_CONFIG]);
    let output = run(check).await;
    assert_eq!(output.status, 0, "{}", output.err);
}

#[tokio::test]
async fn config_show_prints_settings_without_secrets() {
    let text = "[server]\nidle_timeout = \"65s\"\n[agents.hr]\ncorpid = \"ww1\"\nsecret = \"a-plain-secret-of-hr\"\n";
    let shown = run_with_stdin(text, "config show --config -").await;
    assert_eq!(shown.status, 0, "{shown:?}");
    let table: toml::Table = shown.out.parse().expect("TOML");
    assert_eq!(
        table.keys().collect::<BTreeSet<_>>(),
        BTreeSet::from(["agents", "server"].map(String::from).each_ref()),
        "{}",
        shown.out
    );
    assert_eq!(table["server"].as_table().map(toml::Table::len), Some(1), "{}", shown.out);
    assert!(!shown.out.contains("a-plain-secret"), "{}", shown.out);

    let effective = run_with_stdin(text, "config show --effective --config -").await;
    let table: toml::Table = effective.out.parse().expect("TOML");
    assert_eq!(table["server"]["idle_timeout"].as_str(), Some("65s"));
    assert_eq!(table["server"]["max_connections"].as_integer(), Some(10_000));
    assert_eq!(table["upstream"]["url"].as_str(), Some("https://qyapi.weixin.qq.com"));
    assert_eq!(table["agents"]["hr"]["secret"]["set"].as_bool(), Some(true));
}

#[tokio::test]
async fn version_names_commit_and_build() {
    let output = run_wecom_proxy(&["--version"]).await;
    assert_eq!(output.status, 0, "{}", output.err);
    let expected = concat!("wecom-proxy ", env!("CARGO_PKG_VERSION"), " (commit ");
    assert!(output.out.starts_with(expected), "{}", output.out);
    assert!(output.out.contains(" for ") && output.out.lines().count() == 1, "{}", output.out);
}

#[tokio::test]
async fn help_wraps_at_the_width_of_the_terminal() {
    let mut command = wecom_proxy(&["check", "--help"]);
    command.env("COLUMNS", "60");
    let output = run(command).await;
    let longest = output.out.lines().map(|line| line.chars().count()).max();
    assert!(longest.is_some_and(|longest| (40..=60).contains(&longest)), "{longest:?}: {}", output.out);
}
