//! A changed `client_ca` closes the connections whose certificate it no longer covers, once their requests in flight are
//! finished.

use std::{fs, path::PathBuf};

use http::Request;
use wecom_proxy::simulator::Fault;

use crate::{
    certificates::{Authority, Identity},
    harness::{OPEN_CONFIG, TestClient, TestProxy, USER_GET, wait_for},
    raw_http::{RawConnection, raw_get},
};

/// An open proxy with this line in `[server]`.
fn config(line: &str) -> String {
    OPEN_CONFIG.replacen("[upstream]", &format!("{line}\n[upstream]"), 1)
}

/// The `tls` setting whose `client_ca` is a bundle of these authorities.
fn mutual_tls_line(server: &Authority, clients: &[&Authority]) -> String {
    let [cert, key] = server.server_files("localhost");
    let bundle: String =
        clients.iter().map(|ca| fs::read_to_string(ca.ca_file()).expect("a certificate")).collect();
    let path: PathBuf = server.ca_file().with_file_name(format!("clients-{}.pem", clients.len()));
    fs::write(&path, bundle).expect("a file");
    format!("tls = {{ cert = \"{cert}\", key = \"{key}\", client_ca = \"{}\" }}", path.display())
}

/// An HTTP/1.1 and an HTTP/2 connection, on each of which one request succeeded.
async fn connect_both(proxy: &TestProxy, server: &Authority, identity: Option<&Identity>) -> [TestClient; 2] {
    let connect =
        async |alpn: &str| server.connect_tls(proxy.address(), &[alpn], identity).await.expect("a handshake");
    let mut clients = [
        TestClient::http1_over(connect("http/1.1").await).await,
        TestClient::http2_over(connect("h2").await).await,
    ];
    for client in &mut clients {
        client.get(USER_GET).await.assert_ok();
    }
    clients
}

async fn wait_for_close(client: &TestClient) {
    wait_for("the connection to be closed", async || match client {
        TestClient::Http1(sender) => sender.is_closed(),
        TestClient::Http2(sender) => sender.is_closed(),
    })
    .await;
}

#[tokio::test]
async fn client_ca_that_loses_an_authority_closes_its_clients() {
    let (server, retained, removed) = (Authority::new(), Authority::new(), Authority::new());
    let proxy =
        TestProxy::start_with_config(&config(&mutual_tls_line(&server, &[&retained, &removed]))).await;
    let (retained_client, removed_client) = (retained.issue_client("kept"), removed.issue_client("lost"));
    let kept_connections = connect_both(&proxy, &server, Some(&retained_client)).await;
    let idle_connections = connect_both(&proxy, &server, Some(&removed_client)).await;
    let [mut busy1, mut busy2] = connect_both(&proxy, &server, Some(&removed_client)).await;

    // A reload that changes only the server's certificate keeps all connections.
    proxy.rewrite_config(&config(&mutual_tls_line(&server, &[&retained, &removed])));
    proxy.app.reload().expect("a reload");
    for client in kept_connections.iter().chain(&idle_connections) {
        assert!(!matches!(client, TestClient::Http1(sender) if sender.is_closed()));
    }
    for client in [&mut busy1, &mut busy2] {
        client.get(USER_GET).await.assert_ok();
    }

    proxy.wecom.inject(Fault::hold().on_path("/cgi-bin/user/get")).expect("a fault");
    let during = async {
        proxy.wecom.wait_until(|observed| observed.in_flight() == 2).await.expect("two requests");
        proxy.rewrite_config(&config(&mutual_tls_line(&server, &[&retained])));
        proxy.app.reload().expect("a reload");
        for client in &idle_connections {
            wait_for_close(client).await;
        }
        proxy.wecom.release_held();
    };
    let (one, two, ()) = tokio::join!(busy1.get(USER_GET), busy2.get(USER_GET), during);
    one.assert_ok();
    two.assert_ok();
    wait_for_close(&busy1).await;
    wait_for_close(&busy2).await;
    for mut client in kept_connections {
        client.get(USER_GET).await.assert_ok();
    }
    let sent = proxy.forwarded_count();
    let again = server.connect_tls(proxy.address(), &["http/1.1"], Some(&removed_client)).await;
    if let Ok(stream) = again {
        let request = Request::get(format!("/hr{USER_GET}")).body(Default::default()).expect("a request");
        assert!(TestClient::http1_over(stream).await.send(request).await.is_err());
    }
    assert_eq!(proxy.forwarded_count(), sent);
}

#[tokio::test]
async fn new_client_ca_closes_clients_without_a_certificate() {
    let (server, clients) = (Authority::new(), Authority::new());
    let proxy = TestProxy::start_with_config(&config(&server.tls_config_line("localhost"))).await;
    let anonymous = connect_both(&proxy, &server, None).await;
    proxy.rewrite_config(&config(&mutual_tls_line(&server, &[&clients])));
    proxy.app.reload().expect("a reload");
    for client in &anonymous {
        wait_for_close(client).await;
    }
    let mut known = connect_both(&proxy, &server, Some(&clients.issue_client("known"))).await;
    // Without `[clients]` the client certificate is the only access control, so the reload must not drop it.
    proxy.rewrite_config(&config(&server.tls_config_line("localhost")));
    let error = proxy.app.reload().expect_err("no reload").to_string();
    assert!(error.contains("client_ca") && error.contains("server.open"), "{error}");
    proxy.rewrite_config(&config(&format!("open = true\n{}", server.tls_config_line("localhost"))));
    proxy.app.reload().expect("the file says so");
    // A connection with a certificate stays usable when none is required.
    for client in &mut known {
        client.get(USER_GET).await.assert_ok();
    }
}

#[tokio::test]
async fn new_client_ca_closes_plain_connections_after_their_request() {
    let (server, clients) = (Authority::new(), Authority::new());
    let proxy = TestProxy::start_with_config(OPEN_CONFIG).await;
    let idle_connections = TestClient::connect_http1(proxy.address()).await;
    let mut busy = RawConnection::connect(proxy.address()).await;
    let call = raw_get(USER_GET);
    proxy.wecom.inject(Fault::hold().on_path("/cgi-bin/user/get").times(1)).expect("a fault");
    // The second request is pipelined behind the first.
    busy.send(call.repeat(2)).await.expect("sent");
    proxy.wecom.wait_until(|observed| observed.in_flight() == 1).await.expect("a request");
    proxy.rewrite_config(&config(&mutual_tls_line(&server, &[&clients])));
    proxy.app.reload().expect("a reload");
    wait_for_close(&idle_connections).await;
    proxy.wecom.release_held();
    let (rest, _) = busy.read_to_end().await;
    let rest = String::from_utf8_lossy(&rest).into_owned();
    assert_eq!(rest.matches("HTTP/1.1 200").count(), 1, "{rest}");
    assert_eq!(proxy.forwarded_count(), 1);
}
