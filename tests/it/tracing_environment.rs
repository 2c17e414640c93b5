//! The environment variables of OpenTelemetry.

use std::fs;

use http::Request;
use serde_json::{Value, json};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;
use wecom_proxy::simulator::{Fault, Simulator};

use crate::{
    certificates::Authority,
    harness::{OPEN_CONFIG, TestClient, USER_GET, start_simulator_with_config},
    otlp_receiver::OtlpReceiver,
    process::{Process, run, wecom_proxy},
    tracing::spans_of_kind,
};

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const SECRET_HEADER: &str = "hush-hush-of-the-collector";

/// Runs one request to a path that succeeds and one that WeCom refuses, and returns what the proxy wrote.
async fn serve_two_requests(wecom: &Simulator, config: &std::path::Path, env: &[(&str, &str)]) -> String {
    wecom.inject(Fault::errcode(48002).on_path("/cgi-bin/user/simplelist")).expect("a fault");
    let proxy = Process::serve_with_env(config, env).await;
    let mut client = TestClient::connect_http1(proxy.address().await).await;
    client.get(USER_GET).await.assert_ok();
    client.request(Request::get("/hr/cgi-bin/user/simplelist?department_id=1"), "").await;
    proxy.stop().await.err
}

fn wecom_errcodes(spans: &[Value]) -> Vec<&Value> {
    let requests = spans_of_kind(spans, "SPAN_KIND_SERVER");
    requests.iter().map(|span| &span["attributes"]["wecom.errcode"]).collect()
}

#[tokio::test]
async fn environment_sets_collector_headers_sampler_and_resource() {
    let (wecom, _dir, config) = start_simulator_with_config(OPEN_CONFIG).await;
    let receiver = OtlpReceiver::start(&[]).await;
    let headers = format!("authorization=Bearer%20{SECRET_HEADER},x-tenant=a");
    let env = [
        (ENDPOINT, &*receiver.http),
        ("OTEL_EXPORTER_OTLP_HEADERS", &headers),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=prod%2C1,service.name=other"),
        ("OTEL_SERVICE_NAME", "wecom"),
        ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "0"),
    ];
    let output = serve_two_requests(&wecom, &config, &env).await;
    assert!(!output.contains(SECRET_HEADER), "{output}");
    // The successful request and its gettoken are dropped by the sampler, the failed one is kept.
    let spans = receiver.wait_for_spans(2).await;
    assert_eq!(wecom_errcodes(&spans), [48002]);
    let resource = &spans[0]["resource"];
    assert_eq!(
        (&resource["service.name"], &resource["deployment.environment.name"]),
        (&json!("wecom"), &json!("prod,1"))
    );
    let headers = &receiver.deliveries()[0]["headers"];
    assert_eq!(headers["authorization"], format!("Bearer {SECRET_HEADER}"));
    assert_eq!((&headers["x-tenant"], &headers[":path"]), (&json!("a"), &json!("/v1/traces")));
}

#[tokio::test]
async fn instance_id_outlives_a_restart_and_can_be_set() {
    let (wecom, _dir, config) = start_simulator_with_config(OPEN_CONFIG).await;
    let receiver = OtlpReceiver::start(&[]).await;
    let grpc = receiver.grpc.trim_end_matches("/opentelemetry.proto.collector.trace.v1.TraceService/Export");
    let traces = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
    serve_two_requests(&wecom, &config, &[(traces, grpc), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]).await;
    let full = format!("{}/v1/traces", receiver.http);
    serve_two_requests(&wecom, &config, &[(traces, &full), (ENDPOINT, "http://127.0.0.1:9")]).await;
    let named = ("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=replica-a");
    serve_two_requests(&wecom, &config, &[(traces, &full), named]).await;
    let spans = receiver.wait_for_spans(3 * 6).await;
    let ids = [0, 6, 12].map(|first| &spans[first]["resource"]["service.instance.id"]);
    assert!(ids[0] == ids[1] && ids[0].as_str().is_some_and(|id| id.len() == 36), "{ids:?}");
    assert_eq!(ids[2], "replica-a");
    assert_eq!(receiver.deliveries()[0]["by"], "grpc");
}

#[tokio::test]
async fn disabled_sdk_switches_traces_off() {
    let receiver = OtlpReceiver::start(&[]).await;
    let config = OPEN_CONFIG.replace("[admin]", &format!("[admin]\notlp = \"{}\"", receiver.http));
    let (wecom, _dir, config) = start_simulator_with_config(&config).await;
    for off in [
        ("OTEL_SDK_DISABLED", "TRUE"),
        ("OTEL_TRACES_EXPORTER", "none"),
        ("OTEL_TRACES_SAMPLER", "always_off"),
    ] {
        let output = serve_two_requests(&wecom, &config, &[off]).await;
        assert!(!output.contains("trace_id"), "{output}");
    }
    // What the file says wins over an endpoint of the environment.
    serve_two_requests(&wecom, &config, &[(ENDPOINT, "http://127.0.0.1:9")]).await;
    receiver.wait_for_spans(6).await;
}

#[tokio::test]
async fn certificate_of_the_environment_is_trusted() {
    let (wecom, dir, config) = start_simulator_with_config(OPEN_CONFIG).await;
    let receiver = OtlpReceiver::start(&[]).await;
    let (authority, listener) = (Authority::new(), TcpListener::bind("127.0.0.1:0").await.expect("a port"));
    let endpoint = format!("https://{}", listener.local_addr().expect("an address"));
    let server = authority.issue_server("127.0.0.1").server_config(&["http/1.1"]);
    let target = receiver.http.trim_start_matches("http://").to_owned();
    tokio::spawn(async move {
        let acceptor = TlsAcceptor::from(server);
        while let Ok((tcp, _)) = listener.accept().await {
            if let (Ok(mut tls), Ok(mut plain)) =
                (acceptor.accept(tcp).await, TcpStream::connect(&target).await)
            {
                tokio::spawn(async move { copy_bidirectional(&mut tls, &mut plain).await });
            }
        }
    });
    let certificate = authority.ca_file().display().to_string();
    let env = [(ENDPOINT, &*endpoint), ("OTEL_EXPORTER_OTLP_CERTIFICATE", &certificate)];
    serve_two_requests(&wecom, &config, &env).await;
    receiver.wait_for_spans(6).await;
    // Without it, the certificate is from an unknown authority; one that is no certificate stops the traces only.
    let output = serve_two_requests(&wecom, &config, &env[..1]).await;
    assert!(output.contains("TLS handshake failed"), "{output}");
    let broken = dir.path().join("broken.pem");
    fs::write(&broken, "no certificate").expect("a file");
    let broken = broken.display().to_string();
    let output = serve_two_requests(&wecom, &config, &[env[0], (env[1].0, &broken)]).await;
    assert!(output.contains("no traces are exported"), "{output}");
    assert!(output.contains("OTEL_EXPORTER_OTLP_CERTIFICATE: "), "{output}");
}

#[tokio::test]
async fn config_shows_the_source_of_each_setting_and_no_header() {
    let (_wecom, _dir, config) = start_simulator_with_config(OPEN_CONFIG).await;
    let path = config.display().to_string();
    let mut show = wecom_proxy(&["config", "show", "--effective", "--config", &path]);
    show.env(ENDPOINT, "http://collector:4317")
        .env("OTEL_EXPORTER_OTLP_HEADERS", format!("a={SECRET_HEADER}"));
    show.env("OTEL_TRACES_SAMPLER", "traceidratio").env("OTEL_TRACES_SAMPLER_ARG", "0.25");
    let shown = run(show).await;
    assert_eq!(shown.status, 0, "{shown:?}");
    for expected in [
        "TraceService/Export\" (OTEL_EXPORTER_OTLP_ENDPOINT)",
        "headers = \"a=***\" (OTEL_EXPORTER_OTLP_HEADERS)",
        "sampler = \"traceidratio 0.25\" (OTEL_TRACES_SAMPLER)",
    ] {
        assert!(shown.out.contains(expected), "{expected}: {}", shown.out);
    }
    assert!(!format!("{shown:?}").contains(SECRET_HEADER), "{shown:?}");
    shown.out.parse::<toml::Table>().expect("TOML");

    let mut check = wecom_proxy(&["check", "--config", &path]);
    check.env(ENDPOINT, "collector:4317").env("OTEL_SDK_DISABLED", "yes");
    let checked = run(check).await;
    assert_eq!(checked.status, 0, "{checked:?}");
    for expected in [ENDPOINT, "OTEL_SDK_DISABLED: this variable must be true or false"] {
        assert!(checked.err.contains(expected), "{expected}: {checked:?}");
    }
}
