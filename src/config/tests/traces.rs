//! Traces by the environment: what wins, and what is warned of.

use super::{AGENT_TABLE, HIDDEN, directory_with, env};
use crate::config::{Config, TracesConfig, load_with_env};

const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4318/otlp");

fn load_with_variables(more: &str, variables: &[(&str, &str)]) -> Config {
    let text = format!("{AGENT_TABLE}{more}");
    let directory = directory_with(&[("proxy.toml", &text)]);
    let get = |name: &str| {
        let set = variables.iter().find(|(variable, _)| *variable == name);
        set.map(|(_, value)| (*value).to_owned()).or_else(|| env(name))
    };
    load_with_env(&directory.path().join("proxy.toml"), &get).unwrap_or_else(|error| panic!("{error}"))
}

fn traces(variables: &[(&str, &str)]) -> TracesConfig {
    let config = load_with_variables("", variables);
    assert_eq!(config.warnings.len(), 0, "{:?}", config.warnings);
    config.traces.unwrap_or_else(|| panic!("no traces with {variables:?}"))
}

#[test]
fn endpoint_of_traces_is_complete_and_that_of_all_signals_is_not() {
    assert_eq!(load_with_variables("", &[]).traces, None);
    let traces_endpoint = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
    let grpc = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
    for (variables, expected) in [
        (&[ENDPOINT][..], "https://collector:4318/otlp/v1/traces".to_owned()),
        (&[(ENDPOINT.0, "http://c:4318/")], "http://c:4318/v1/traces".to_owned()),
        (&[(ENDPOINT.0, "http://c:4317")], format!("http://c:4317{grpc}")),
        (&[(ENDPOINT.0, "http://c"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")], format!("http://c:80{grpc}")),
        (
            &[(ENDPOINT.0, "http://c:4317"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")],
            "http://c:4317/v1/traces".to_owned(),
        ),
        (&[ENDPOINT, (traces_endpoint, "http://t:1/x")], "http://t:1/x".to_owned()),
        (&[(traces_endpoint, "http://t:1")], "http://t:1/".to_owned()),
        (&[(traces_endpoint, ""), ENDPOINT], "https://collector:4318/otlp/v1/traces".to_owned()),
    ] {
        assert_eq!(traces(variables).collector.to_string(), expected, "{variables:?}");
    }
}

#[test]
fn sampler_is_read_as_the_specification_says() {
    for (sampler, ratio, expected) in [
        ("always_on", "0.5", "always_on"),
        ("traceidratio", "0.5", "traceidratio 0.5"),
        ("traceidratio", "", "always_on"),
        ("parentbased_traceidratio", "0.125", "parentbased_traceidratio 0.125"),
        ("parentbased_always_off", "", "parentbased_always_off"),
    ] {
        let (name, argument) = (("OTEL_TRACES_SAMPLER", sampler), ("OTEL_TRACES_SAMPLER_ARG", ratio));
        assert_eq!(traces(&[ENDPOINT, name, argument]).sampler.to_string(), expected, "{sampler} {ratio}");
    }
    assert_eq!(traces(&[ENDPOINT]).sampler.to_string(), "parentbased_always_on");
}

#[test]
fn file_wins_and_headers_are_secrets() {
    let variables = [ENDPOINT, ("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Basic%20hunter2, x-b = 2 ")];
    let config = load_with_variables("[admin]\notlp = \"http://127.0.0.1:4318\"", &variables);
    assert!(!format!("{config:?}").contains(HIDDEN), "a secret is shown: {config:?}");
    let traces = config.traces.expect("traces");
    assert_eq!(traces.collector.to_string(), "http://127.0.0.1:4318/v1/traces");
    let headers: Vec<_> =
        traces.headers.iter().map(|(name, value)| (name.as_str(), value.expose())).collect();
    assert_eq!(headers, [("authorization", "Basic hunter2"), ("x-b", "2")]);
    let (endpoint, headers) = (&traces.shown[0], &traces.shown[1]);
    assert_eq!((endpoint.0, endpoint.2), ("endpoint", "admin.otlp"));
    assert_eq!((&*headers.1, headers.2), ("Authorization=***,x-b=***", "OTEL_EXPORTER_OTLP_HEADERS"));
}

#[test]
fn values_that_are_not_understood_are_ignored_with_a_warning() {
    for (name, value, has_traces) in [
        ("OTEL_SDK_DISABLED", "hunter2", true),
        ("OTEL_TRACES_EXPORTER", "zipkin", true),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", true),
        ("OTEL_EXPORTER_OTLP_HEADERS", "hunter2", true),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=hunter2%0A", true),
        ("OTEL_EXPORTER_OTLP_HEADERS", "Content-Length=3,a=hunter2", true),
        ("OTEL_EXPORTER_OTLP_HEADERS", "host=hunter2", true),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=b,hunter2", true),
        ("OTEL_TRACES_SAMPLER", "jaeger_remote", true),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://u:hunter2@c:4318", false),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "collector:4317", false),
    ] {
        let config = load_with_variables("", &[ENDPOINT, (name, value)]);
        let [warning] = &config.warnings[..] else { panic!("{name}: {:?}", config.warnings) };
        assert_eq!(warning.key.as_deref(), Some(name), "{warning}");
        assert!(!warning.to_string().contains(HIDDEN), "a secret is shown: {warning}");
        assert_eq!(config.traces.is_some(), has_traces, "{name}");
    }
    let ratio = [ENDPOINT, ("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "1.5")];
    let config = load_with_variables("", &ratio);
    assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
    let disabled = load_with_variables("[admin]\notlp = \"http://c:4318\"", &[("OTEL_SDK_DISABLED", "true")]);
    assert!(disabled.traces.is_none() && disabled.warnings.len() == 1, "{:?}", disabled.warnings);
}
