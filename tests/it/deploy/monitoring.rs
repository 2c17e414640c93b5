//! Prometheus's rules and configuration, checked by promtool, and Grafana's dashboard.

use std::{collections::BTreeSet, fs, process::Command};

use serde_json::Value;
use tempfile::TempDir;

use super::{program_command, read_text, replace_all, repository_file, run_ok, yaml};

/// The metrics that rules and dashboards may use.
const METRICS: [&str; 47] = [
    "wecom_proxy_requests_total",
    "wecom_proxy_request_duration_seconds_bucket",
    "wecom_proxy_upstream_duration_seconds_bucket",
    "wecom_proxy_errcodes_total",
    "wecom_proxy_token_refreshes_total",
    "wecom_proxy_token_expiry_timestamp_seconds",
    "wecom_proxy_token_renewals_held",
    "wecom_proxy_agent_trouble",
    "wecom_proxy_retries_total",
    "wecom_proxy_refusals_total",
    "wecom_proxy_access_log_dropped_total",
    "wecom_proxy_spans_dropped_total",
    "wecom_proxy_replay_memory_bytes",
    "wecom_proxy_replay_disk_bytes",
    "wecom_proxy_replay_disk_limit_bytes",
    "wecom_proxy_in_flight",
    "wecom_proxy_token_waiters",
    "wecom_proxy_connections",
    "wecom_proxy_connections_limit",
    "wecom_proxy_upstream_in_flight",
    "wecom_proxy_upstream_in_flight_limit",
    "wecom_proxy_upstream_queued",
    "wecom_proxy_replay_memory_limit_bytes",
    "wecom_proxy_certificate_expiry_timestamp_seconds",
    "wecom_proxy_config_last_reload_successful",
    "wecom_proxy_config_last_reload_success_timestamp_seconds",
    "wecom_proxy_gettoken_duration_seconds_sum",
    "wecom_proxy_gettoken_duration_seconds_count",
    "wecom_proxy_gettoken_errcodes_total",
    "wecom_proxy_agent_refusals_total",
    "wecom_proxy_request_bytes_total",
    "wecom_proxy_response_bytes_total",
    "wecom_proxy_store_up",
    "wecom_proxy_state_up",
    "wecom_proxy_state_unreadable_records",
    "wecom_proxy_via_up",
    "wecom_proxy_callback_pending",
    "wecom_proxy_callbacks_total",
    "wecom_proxy_callback_dead",
    "wecom_proxy_callback_deliveries_total",
    "wecom_proxy_suite_ticket_age_seconds",
    "wecom_proxy_suite_corps",
    "wecom_proxy_suite_corps_refused",
    "wecom_proxy_build_info",
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "up",
];

fn promtool(arguments: &[&str]) -> Command {
    let mut command = program_command("promtool", "--version");
    command.args(arguments).current_dir(repository_file("deploy/prometheus"));
    command
}

fn dashboard() -> Value {
    serde_json::from_str(&read_text("deploy/grafana/wecom-proxy.json")).expect("JSON")
}

/// The queries of the dashboard's panels, with a value for `$__rate_interval`.
fn dashboard_queries(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let text = |target: &Value| target["expr"].as_str().expect("a query").to_owned();
    targets.map(text).map(|query| query.replace("$__rate_interval", "5m")).collect()
}

/// The expressions and the names of the alerts.
async fn alert_rules() -> (Vec<String>, BTreeSet<String>) {
    let rules = &yaml("deploy/prometheus/rules.yml").await[0];
    let rules = rules["groups"][0]["rules"].as_array().expect("rules");
    let all = |key: &str| -> Vec<String> {
        rules.iter().map(|rule| rule[key].as_str().expect("a text").to_owned()).collect()
    };
    (all("expr"), all("alert").into_iter().collect())
}

/// The metric names of a query: words with a metric prefix, or followed by a label selector.
fn metric_names(query: &str) -> BTreeSet<&str> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = BTreeSet::new();
    for (at, _) in query.match_indices(|c: char| !is_word(c)).chain([(query.len(), "")]) {
        let word = query[..at].rsplit(|c: char| !is_word(c)).next().expect("a word");
        let has_selector = query[at..].starts_with('{') && !word.is_empty();
        if has_selector || word.starts_with("wecom_proxy_") || word.starts_with("process_") {
            found.insert(word);
        }
    }
    found
}

#[tokio::test]
async fn prometheus_rules_and_configuration_are_valid() {
    run_ok(promtool(&["check", "rules", "rules.yml"])).await;
    let dir = TempDir::new().expect("a directory");
    let path_of = |name: &str| dir.path().join(name).display().to_string();
    let key = path_of("admin");
    fs::write(&key, "a-key").expect("a file");
    let config = replace_all(&read_text("deploy/prometheus/prometheus.yml"), &[("/run/secrets/admin", &key)]);
    fs::write(path_of("prometheus.yml"), config).expect("a file");
    fs::copy(repository_file("deploy/prometheus/rules.yml"), path_of("rules.yml")).expect("a file");
    run_ok(promtool(&["check", "config", &path_of("prometheus.yml")])).await;
}

#[tokio::test]
async fn alerts_fire_only_on_their_condition() {
    run_ok(promtool(&["test", "rules", "rules.test.yml"])).await;
    let tests = &yaml("deploy/prometheus/rules.test.yml").await[0];
    let tests = tests["tests"].as_array().expect("tests");
    let cases = tests.iter().flat_map(|test| test["alert_rule_test"].as_array().expect("cases"));
    let (fired, silent): (Vec<_>, Vec<_>) = cases.partition(|case| case["exp_alerts"].is_array());
    let names = |cases: Vec<&Value>| -> BTreeSet<String> {
        cases.iter().map(|case| case["alertname"].as_str().expect("a name").to_owned()).collect()
    };
    let (_, alerts) = alert_rules().await;
    assert_eq!((&names(fired), &names(silent)), (&alerts, &alerts));
}

#[tokio::test]
async fn dashboard_queries_are_valid_promql() {
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("queries.yml");
    let mut all = "groups:\n  - name: dashboard\n    rules:\n".to_owned();
    for (number, query) in dashboard_queries(&dashboard()).iter().enumerate() {
        let query = Value::String(query.clone());
        all += &format!("      - {{ record: \"query:{number}\", expr: {query} }}\n");
    }
    fs::write(&path, all).expect("a file");
    run_ok(promtool(&["check", "rules", path.to_str().expect("a path in UTF-8")])).await;
}

#[tokio::test]
async fn rules_and_dashboard_use_only_existing_metrics() {
    let mut queries = dashboard_queries(&dashboard());
    let variables = dashboard()["templating"]["list"].as_array().expect("variables").clone();
    queries
        .extend(variables.iter().filter_map(|variable| variable["definition"].as_str()).map(str::to_owned));
    queries.extend(alert_rules().await.0);
    let used: BTreeSet<_> = queries.iter().flat_map(|query| metric_names(query)).collect();
    let unknown: Vec<_> = used.iter().filter(|name| !METRICS.contains(name)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    assert!(used.len() > 12, "{used:?}");
}

#[test]
fn grafana_dashboard_is_consistent() {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().expect("panels");
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().expect("an id")).collect();
    assert_eq!(ids.len(), panels.len(), "duplicate panel ids");
    let mut cells = BTreeSet::new();
    for panel in panels {
        let grid = |key: &str| panel["gridPos"][key].as_u64().expect("a number");
        assert!(grid("x") + grid("w") <= 24, "{}", panel["title"]);
        for cell in (grid("y")..grid("y") + grid("h"))
            .flat_map(|y| (grid("x")..grid("x") + grid("w")).map(move |x| (x, y)))
        {
            assert!(cells.insert(cell), "{} overlaps another panel", panel["title"]);
        }
        for target in panel["targets"].as_array().into_iter().flatten() {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{}", panel["title"]);
        }
    }
    let variables = dashboard["templating"]["list"].as_array().expect("variables");
    let names: Vec<_> = variables.iter().map(|variable| variable["name"].as_str().expect("a name")).collect();
    assert_eq!(names, ["datasource", "job", "instance", "agent"]);
    let queries = dashboard_queries(&dashboard).join("\n");
    for variable in queries.split('$').skip(1) {
        let name = variable.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().expect("a name");
        assert!(names.contains(&name), "${name} is not a variable");
    }
    assert_eq!(dashboard["id"], Value::Null, "the id of a Grafana instance");
}
