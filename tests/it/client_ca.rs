//! A changed `client_ca` closes the connections that it no longer covers, each when its requests in flight are answered.

use std::{fs, path::PathBuf};

use http::Request;
use wecom_proxy::simulator::Fault;

use crate::{
    certificates::{Authority, Identity},
    stage::{Caller, OPEN, Stage, USER_GET, wait_for},
    wire::Line,
};

/// An open proxy, in whose `[server]` stands this line.
fn config(line: &str) -> String {
    OPEN.replacen("[upstream]", &format!("{line}\n[upstream]"), 1)
}

/// The line for TLS with these authorities of clients in one file.
fn mutual(server: &Authority, clients: &[&Authority]) -> String {
    let [cert, key] = server.server_files("localhost");
    let bundle: String =
        clients.iter().map(|ca| fs::read_to_string(ca.file()).expect("a certificate")).collect();
    let path: PathBuf = server.file().with_file_name(format!("clients-{}.pem", clients.len()));
    fs::write(&path, bundle).expect("a file");
    format!("tls = {{ cert = \"{cert}\", key = \"{key}\", client_ca = \"{}\" }}", path.display())
}

/// A connection over HTTP/1.1 and one over HTTP/2, each of which has had a request answered.
async fn both(stage: &Stage, server: &Authority, identity: Option<&Identity>) -> [Caller; 2] {
    let connect =
        async |alpn: &str| server.connect(stage.address(), &[alpn], identity).await.expect("a handshake");
    let mut callers =
        [Caller::http1_over(connect("http/1.1").await).await, Caller::http2_over(connect("h2").await).await];
    for caller in &mut callers {
        caller.get(USER_GET).await.is_ok();
    }
    callers
}

async fn closed(caller: &Caller) {
    wait_for("the connection to be closed", async || match caller {
        Caller::Http1(sender) => sender.is_closed(),
        Caller::Http2(sender) => sender.is_closed(),
    })
    .await;
}

#[tokio::test]
async fn client_ca_that_loses_an_authority_closes_its_clients() {
    let (server, kept, lost) = (Authority::new(), Authority::new(), Authority::new());
    let stage = Stage::with(&config(&mutual(&server, &[&kept, &lost]))).await;
    let (kept_client, lost_client) = (kept.client("kept"), lost.client("lost"));
    let stay = both(&stage, &server, Some(&kept_client)).await;
    let idle = both(&stage, &server, Some(&lost_client)).await;
    let [mut busy1, mut busy2] = both(&stage, &server, Some(&lost_client)).await;

    // The server's own certificate changes, and nothing else.
    stage.rewrite(&config(&mutual(&server, &[&kept, &lost])));
    stage.proxy.reload().expect("a reload");
    for caller in stay.iter().chain(&idle) {
        assert!(!matches!(caller, Caller::Http1(sender) if sender.is_closed()));
    }
    for caller in [&mut busy1, &mut busy2] {
        caller.get(USER_GET).await.is_ok();
    }

    stage.wecom.inject(Fault::hold().on("/cgi-bin/user/get")).expect("a fault");
    let during = async {
        stage.wecom.wait_until(|seen| seen.in_flight() == 2).await.expect("two requests");
        stage.rewrite(&config(&mutual(&server, &[&kept])));
        stage.proxy.reload().expect("a reload");
        for caller in &idle {
            closed(caller).await;
        }
        stage.wecom.release();
    };
    let (one, two, ()) = tokio::join!(busy1.get(USER_GET), busy2.get(USER_GET), during);
    one.is_ok();
    two.is_ok();
    closed(&busy1).await;
    closed(&busy2).await;
    for mut caller in stay {
        caller.get(USER_GET).await.is_ok();
    }
    let sent = stage.got_through();
    let again = server.connect(stage.address(), &["http/1.1"], Some(&lost_client)).await;
    if let Ok(stream) = again {
        let request = Request::get(format!("/hr{USER_GET}")).body(Default::default()).expect("a request");
        assert!(Caller::http1_over(stream).await.send(request).await.is_err());
    }
    assert_eq!(stage.got_through(), sent);
}

#[tokio::test]
async fn client_ca_that_is_new_closes_clients_without_certificate() {
    let (server, clients) = (Authority::new(), Authority::new());
    let stage = Stage::with(&config(&server.server_line("localhost"))).await;
    let anonymous = both(&stage, &server, None).await;
    stage.rewrite(&config(&mutual(&server, &[&clients])));
    stage.proxy.reload().expect("a reload");
    for caller in &anonymous {
        closed(caller).await;
    }
    let mut known = both(&stage, &server, Some(&clients.client("known"))).await;
    // Without clients the certificate is all that keeps other callers out.
    stage.rewrite(&config(&server.server_line("localhost")));
    let error = stage.proxy.reload().expect_err("no reload").to_string();
    assert!(error.contains("client_ca") && error.contains("server.open"), "{error}");
    stage.rewrite(&config(&format!("open = true\n{}", server.server_line("localhost"))));
    stage.proxy.reload().expect("the file says so");
    // A client that had to show a certificate is served where none is needed.
    for caller in &mut known {
        caller.get(USER_GET).await.is_ok();
    }
}

#[tokio::test]
async fn client_ca_closes_plain_connections_and_serves_no_request_on_them() {
    let (server, clients) = (Authority::new(), Authority::new());
    let stage = Stage::with(OPEN).await;
    let idle = Caller::http1(stage.address()).await;
    let mut busy = Line::to(stage.address()).await;
    let call = format!("GET /hr{USER_GET} HTTP/1.1\r\nHost: x\r\n\r\n");
    stage.wecom.inject(Fault::hold().on("/cgi-bin/user/get").times(1)).expect("a fault");
    // The second request waits behind the first.
    busy.say(call.repeat(2)).await.expect("it is taken");
    stage.wecom.wait_until(|seen| seen.in_flight() == 1).await.expect("a request");
    stage.rewrite(&config(&mutual(&server, &[&clients])));
    stage.proxy.reload().expect("a reload");
    closed(&idle).await;
    stage.wecom.release();
    let (rest, _) = busy.rest().await;
    let rest = String::from_utf8_lossy(&rest).into_owned();
    assert_eq!(rest.matches("HTTP/1.1 200").count(), 1, "{rest}");
    assert_eq!(stage.got_through(), 1);
}
