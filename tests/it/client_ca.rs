//! A changed `client_ca` closes the connections that it no longer covers, each when its requests in flight are answered.

use std::{fs, path::PathBuf};

use http::Request;
use wecom_proxy::simulator::Fault;

use crate::{
    certificates::{Authority, Identity},
    harness::{OPEN_CONFIG, TestClient, TestProxy, USER_GET, wait_for},
    raw_http::RawConnection,
};

/// An open proxy, in whose `[server]` stands this line.
fn config(line: &str) -> String {
    OPEN_CONFIG.replacen("[upstream]", &format!("{line}\n[upstream]"), 1)
}

/// The line for TLS with these authorities of clients in one file.
fn mutual_tls_line(server: &Authority, clients: &[&Authority]) -> String {
    let [cert, key] = server.server_files("localhost");
    let bundle: String =
        clients.iter().map(|ca| fs::read_to_string(ca.ca_file()).expect("a certificate")).collect();
    let path: PathBuf = server.ca_file().with_file_name(format!("clients-{}.pem", clients.len()));
    fs::write(&path, bundle).expect("a file");
    format!("tls = {{ cert = \"{cert}\", key = \"{key}\", client_ca = \"{}\" }}", path.display())
}

/// A connection over HTTP/1.1 and one over HTTP/2, each of which has had a request answered.
async fn connect_both(stage: &TestProxy, server: &Authority, identity: Option<&Identity>) -> [TestClient; 2] {
    let connect =
        async |alpn: &str| server.connect_tls(stage.address(), &[alpn], identity).await.expect("a handshake");
    let mut callers = [
        TestClient::http1_over(connect("http/1.1").await).await,
        TestClient::http2_over(connect("h2").await).await,
    ];
    for caller in &mut callers {
        caller.get(USER_GET).await.assert_ok();
    }
    callers
}

async fn wait_for_close(caller: &TestClient) {
    wait_for("the connection to be closed", async || match caller {
        TestClient::Http1(sender) => sender.is_closed(),
        TestClient::Http2(sender) => sender.is_closed(),
    })
    .await;
}

#[tokio::test]
async fn client_ca_that_loses_an_authority_closes_its_clients() {
    let (server, kept, lost) = (Authority::new(), Authority::new(), Authority::new());
    let stage = TestProxy::start_with_config(&config(&mutual_tls_line(&server, &[&kept, &lost]))).await;
    let (kept_client, lost_client) = (kept.issue_client("kept"), lost.issue_client("lost"));
    let stay = connect_both(&stage, &server, Some(&kept_client)).await;
    let idle = connect_both(&stage, &server, Some(&lost_client)).await;
    let [mut busy1, mut busy2] = connect_both(&stage, &server, Some(&lost_client)).await;

    // The server's own certificate changes, and nothing else.
    stage.rewrite_config(&config(&mutual_tls_line(&server, &[&kept, &lost])));
    stage.app.reload().expect("a reload");
    for caller in stay.iter().chain(&idle) {
        assert!(!matches!(caller, TestClient::Http1(sender) if sender.is_closed()));
    }
    for caller in [&mut busy1, &mut busy2] {
        caller.get(USER_GET).await.assert_ok();
    }

    stage.wecom.inject(Fault::hold().on_path("/cgi-bin/user/get")).expect("a fault");
    let during = async {
        stage.wecom.wait_until(|seen| seen.in_flight() == 2).await.expect("two requests");
        stage.rewrite_config(&config(&mutual_tls_line(&server, &[&kept])));
        stage.app.reload().expect("a reload");
        for caller in &idle {
            wait_for_close(caller).await;
        }
        stage.wecom.release_held();
    };
    let (one, two, ()) = tokio::join!(busy1.get(USER_GET), busy2.get(USER_GET), during);
    one.assert_ok();
    two.assert_ok();
    wait_for_close(&busy1).await;
    wait_for_close(&busy2).await;
    for mut caller in stay {
        caller.get(USER_GET).await.assert_ok();
    }
    let sent = stage.forwarded_count();
    let again = server.connect_tls(stage.address(), &["http/1.1"], Some(&lost_client)).await;
    if let Ok(stream) = again {
        let request = Request::get(format!("/hr{USER_GET}")).body(Default::default()).expect("a request");
        assert!(TestClient::http1_over(stream).await.send(request).await.is_err());
    }
    assert_eq!(stage.forwarded_count(), sent);
}

#[tokio::test]
async fn new_client_ca_closes_clients_without_a_certificate() {
    let (server, clients) = (Authority::new(), Authority::new());
    let stage = TestProxy::start_with_config(&config(&server.tls_config_line("localhost"))).await;
    let anonymous = connect_both(&stage, &server, None).await;
    stage.rewrite_config(&config(&mutual_tls_line(&server, &[&clients])));
    stage.app.reload().expect("a reload");
    for caller in &anonymous {
        wait_for_close(caller).await;
    }
    let mut known = connect_both(&stage, &server, Some(&clients.issue_client("known"))).await;
    // Without clients the certificate is all that keeps other callers out.
    stage.rewrite_config(&config(&server.tls_config_line("localhost")));
    let error = stage.app.reload().expect_err("no reload").to_string();
    assert!(error.contains("client_ca") && error.contains("server.open"), "{error}");
    stage.rewrite_config(&config(&format!("open = true\n{}", server.tls_config_line("localhost"))));
    stage.app.reload().expect("the file says so");
    // A client that had to show a certificate is served where none is needed.
    for caller in &mut known {
        caller.get(USER_GET).await.assert_ok();
    }
}

#[tokio::test]
async fn new_client_ca_closes_plain_connections_after_their_request() {
    let (server, clients) = (Authority::new(), Authority::new());
    let stage = TestProxy::start_with_config(OPEN_CONFIG).await;
    let idle = TestClient::connect_http1(stage.address()).await;
    let mut busy = RawConnection::connect(stage.address()).await;
    let call = format!("GET /hr{USER_GET} HTTP/1.1\r\nHost: x\r\n\r\n");
    stage.wecom.inject(Fault::hold().on_path("/cgi-bin/user/get").times(1)).expect("a fault");
    // The second request waits behind the first.
    busy.send(call.repeat(2)).await.expect("it is taken");
    stage.wecom.wait_until(|seen| seen.in_flight() == 1).await.expect("a request");
    stage.rewrite_config(&config(&mutual_tls_line(&server, &[&clients])));
    stage.app.reload().expect("a reload");
    wait_for_close(&idle).await;
    stage.wecom.release_held();
    let (rest, _) = busy.read_to_end().await;
    let rest = String::from_utf8_lossy(&rest).into_owned();
    assert_eq!(rest.matches("HTTP/1.1 200").count(), 1, "{rest}");
    assert_eq!(stage.forwarded_count(), 1);
}
