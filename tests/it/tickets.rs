//! Tickets: fetched once for any number of requests, and cached.

use std::{
    fs,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::Request;
use tokio::task::JoinHandle;
use wecom_proxy::simulator::{DropPoint, Fault};

use crate::{
    gettoken::{HR_SECRET, fetch_pass},
    harness::{
        CONFIG_WITH_CLIENTS, OPEN_CONFIG, TestClient, TestProxy, TestResponse, get_concurrently, wait_for,
    },
    leak_detector,
    raw_http::{ManualUpstream, RawConnection},
};

const JSAPI: &str = "/cgi-bin/get_jsapi_ticket";
const AGENT_CONFIG: &str = "/cgi-bin/ticket/get?type=agent_config";
const BOTH: [&str; 2] = [JSAPI, AGENT_CONFIG];

fn path_of(target: &str) -> &str {
    target.split('?').next().unwrap_or(target)
}

/// The number of requests for this ticket that reached WeCom.
fn fetch_count(proxy: &TestProxy, target: &str) -> usize {
    proxy.wecom.observe(|observed| observed.received_count(path_of(target)))
}

#[track_caller]
fn ticket_from_response(response: &TestResponse) -> String {
    response.assert_ok();
    let ticket = response.json()["ticket"].as_str().unwrap_or_default().to_owned();
    assert!(!ticket.is_empty(), "{}", response.text());
    ticket
}

/// An upstream whose ticket a test sets. Its `expires_in` is the whole lifetime in each response.
pub(crate) struct TicketUpstream {
    pub(crate) address: SocketAddr,
    ticket: Arc<Mutex<&'static str>>,
    fetches: Arc<AtomicUsize>,
}

impl TicketUpstream {
    pub(crate) async fn new(ticket: &'static str, expires_in: u64) -> Self {
        leak_detector::add_secret(ticket);
        let mut upstream = ManualUpstream::new().await;
        let (ticket, fetches) = (Arc::new(Mutex::new(ticket)), Arc::<AtomicUsize>::default());
        let this = Self { address: upstream.address, ticket: ticket.clone(), fetches: fetches.clone() };
        tokio::spawn(async move {
            while let Some(mut call) = upstream.try_next_call().await {
                let ticket = *ticket.lock().expect("no panic");
                let body =
                    format!(r#"{{"errcode":0,"errmsg":"ok","ticket":"{ticket}","expires_in":{expires_in}}}"#);
                let length = body.len();
                let head =
                    format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}");
                fetches.fetch_add(1, Ordering::SeqCst);
                let _ = call.connection.send(format!("{head}\r\nConnection: close\r\n\r\n{body}")).await;
            }
        });
        this
    }

    fn set_ticket(&self, ticket: &'static str) {
        leak_detector::add_secret(ticket);
        *self.ticket.lock().expect("no panic") = ticket;
    }

    pub(crate) fn fetches(&self) -> usize {
        self.fetches.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn repeated_ticket_is_not_used_past_its_expiry() {
    let upstream = TicketUpstream::new("TICKET-THAT-IS-REPEATED", 2).await;
    let proxy = TestProxy::start_with_upstream(upstream.address, OPEN_CONFIG).await;
    let start = tokio::time::Instant::now();
    assert_eq!(proxy.get(JSAPI).await.assert_ok().header("cache-control"), "");
    tokio::time::sleep_until(start + Duration::from_millis(1600)).await;
    let repeated = proxy.get(JSAPI).await;
    assert_eq!(ticket_from_response(&repeated), "TICKET-THAT-IS-REPEATED");
    assert_eq!((repeated.header("cache-control"), upstream.fetches()), ("no-store", 2));
    // From its expiry on one fetch, and WeCom's word for the others.
    tokio::time::sleep_until(start + Duration::from_millis(2010)).await;
    for _ in 0..10 {
        let repeated = proxy.get(JSAPI).await;
        assert_eq!(ticket_from_response(&repeated), "TICKET-THAT-IS-REPEATED");
        assert_eq!((repeated.header("cache-control"), upstream.fetches()), ("no-store", 3));
        assert_eq!(repeated.json()["expires_in"], 2);
    }
}

#[tokio::test]
async fn ticket_that_follows_a_repeated_one_is_used_at_once() {
    let upstream = TicketUpstream::new("TICKET-BEFORE-THE-CHANGE", 2).await;
    let proxy = TestProxy::start_with_upstream(upstream.address, OPEN_CONFIG).await;
    let start = tokio::time::Instant::now();
    proxy.get(JSAPI).await.assert_ok();
    tokio::time::sleep_until(start + Duration::from_millis(1900)).await;
    proxy.get(JSAPI).await.assert_ok();
    upstream.set_ticket("TICKET-AFTER-THE-CHANGE");
    tokio::time::sleep_until(start + Duration::from_millis(2010)).await;
    let next = proxy.get(JSAPI).await;
    assert_eq!(ticket_from_response(&next), "TICKET-AFTER-THE-CHANGE");
    assert_eq!(next.header("cache-control"), "");
}

#[tokio::test]
async fn tickets_are_cached_per_agent() {
    let proxy = TestProxy::start_open().await;
    let mut tickets = Vec::new();
    for target in BOTH {
        for agent in ["hr", "ops"] {
            let request = || proxy.request(Request::get(format!("/{agent}{target}")), "");
            let first = ticket_from_response(&request().await);
            assert_eq!(ticket_from_response(&request().await), first);
            tickets.push(first);
        }
        assert_eq!(fetch_count(&proxy, target), 2);
    }
    tickets.sort();
    tickets.dedup();
    assert_eq!(tickets.len(), 4);
}

#[tokio::test]
async fn two_hundred_clients_cause_one_fetch_per_ticket() {
    let proxy = Arc::new(TestProxy::start_open().await);
    for target in BOTH {
        proxy
            .wecom
            .inject(Fault::delay(Duration::from_millis(200)).on_path(path_of(target)))
            .expect("a fault");
        let mut tickets: Vec<_> =
            get_concurrently(&proxy, 200, target).await.iter().map(ticket_from_response).collect();
        tickets.dedup();
        assert_eq!((tickets.len(), fetch_count(&proxy, target)), (1, 1));
    }
    assert_eq!(proxy.wecom.gettoken_count("hr").expect("an agent"), 1);
}

#[tokio::test]
async fn cached_ticket_returns_its_remaining_lifetime() {
    let proxy = TestProxy::start_open().await;
    let first = ticket_from_response(&proxy.get(JSAPI).await);
    let mut remaining = 7200;
    wait_for("a second to pass", async || {
        let response = proxy.get(JSAPI).await;
        let seconds = response.json()["expires_in"].as_u64().expect("a number");
        let text = format!(r#"{{"errcode":0,"errmsg":"ok","ticket":"{first}","expires_in":{seconds}}}"#);
        assert_eq!(response.text(), text);
        assert_eq!(response.header("content-type"), "application/json; charset=UTF-8");
        assert!(seconds <= remaining && seconds >= 7180, "{seconds} after {remaining}");
        remaining = seconds;
        seconds < 7199
    })
    .await;
    assert_eq!(fetch_count(&proxy, JSAPI), 1);
}

/// Starts `count` ticket requests on one connection, and waits until the proxy has begun all of them.
async fn start_waiting_calls(proxy: &TestProxy, count: usize) -> Vec<JoinHandle<TestResponse>> {
    let TestClient::Http2(connection) = TestClient::connect_http2(proxy.address()).await else {
        unreachable!("it is HTTP/2")
    };
    let call = |path: &'static str| {
        let mut client = TestClient::Http2(connection.clone());
        tokio::spawn(async move { client.get(path).await })
    };
    let calls = (0..count).map(|_| call(JSAPI)).collect();
    // Its response proves that the requests before it on the connection were begun.
    call("/cgi-bin/user/get?userid=zhangsan").await.expect("no panic").assert_ok();
    calls
}

#[tokio::test]
async fn failed_ticket_is_shared_by_waiters_and_not_cached() {
    let proxy = TestProxy::start_open().await;
    proxy.wecom.inject(Fault::errcode(45009).on_path(JSAPI)).expect("a fault");
    proxy.wecom.inject(Fault::hold().on_path(JSAPI)).expect("a fault");
    let calls = start_waiting_calls(&proxy, 50).await;
    proxy.wecom.wait_until(|observed| observed.received_count(JSAPI) == 1).await.expect("a fetch");
    proxy.wecom.release_held();
    for call in calls {
        let response = call.await.expect("no panic");
        assert_eq!((response.status.as_u16(), response.errcode()), (200, 45009), "{}", response.text());
    }
    assert_eq!(fetch_count(&proxy, JSAPI), 1);
    proxy.wecom.reset();
    ticket_from_response(&proxy.get(JSAPI).await);
}

#[tokio::test]
async fn aborted_ticket_fetch_fails_all_waiters_and_is_not_cached() {
    let proxy = TestProxy::start_open().await;
    proxy.wecom.inject(Fault::hold().on_path(JSAPI)).expect("a fault");
    proxy.wecom.inject(Fault::drop(DropPoint::MidBody).on_path(JSAPI)).expect("a fault");
    let calls = start_waiting_calls(&proxy, 20).await;
    proxy.wecom.wait_until(|observed| observed.received_count(JSAPI) == 1).await.expect("a fetch");
    proxy.wecom.release_held();
    for call in calls {
        call.await.expect("no panic").assert_proxy_error("upstream-broke", 502, -1);
    }
    assert_eq!(fetch_count(&proxy, JSAPI), 1);
    ticket_from_response(&proxy.get(JSAPI).await);
}

#[tokio::test]
async fn slow_ticket_response_times_out_for_all_waiters() {
    let mut upstream = ManualUpstream::new().await;
    let timeouts = "connect_timeout = \"200ms\"\nresponse_timeout = \"200ms\"\nbody_timeout = \"200ms\"";
    let toml = OPEN_CONFIG.replace("[upstream]", &format!("[upstream]\n{timeouts}"));
    let proxy = TestProxy::start_with_upstream(upstream.address, &toml).await;
    let send_slowly = async {
        let mut call = upstream.next_call().await;
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9000\r\n\r\n{";
        call.connection.send(head).await.expect("sent");
        // Each wait is short, but the body never ends.
        let mut interval = tokio::time::interval(Duration::from_millis(50));
        while call.connection.send(" ").await.is_ok() {
            interval.tick().await;
        }
    };
    let (first, second, ()) = tokio::join!(proxy.get(JSAPI), proxy.get(JSAPI), send_slowly);
    let mut statuses = [first.status.as_u16(), second.status.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [502, 504], "one request waits for the other");
}

#[tokio::test]
async fn aborting_client_does_not_fail_other_ticket_waiters() {
    let proxy = Arc::new(TestProxy::start_open().await);
    proxy.wecom.inject(Fault::hold().on_path(JSAPI).times(1)).expect("a fault");
    let mut first = RawConnection::connect(proxy.address()).await;
    first.send(format!("GET {JSAPI} HTTP/1.1\r\nHost: x\r\nX-Wecom-Agent: hr\r\n\r\n")).await.expect("sent");
    proxy.wecom.wait_until(|observed| observed.received_count(JSAPI) == 1).await.expect("a fetch");
    let calls = start_waiting_calls(&proxy, 20).await;
    first.reset();
    let mut tickets: Vec<_> = Vec::new();
    for call in calls {
        tickets.push(ticket_from_response(&call.await.expect("no panic")));
    }
    tickets.dedup();
    assert_eq!(tickets.len(), 1);
    assert_eq!(fetch_count(&proxy, JSAPI), 2);
}

#[tokio::test]
async fn ticket_without_a_token_returns_the_token_error() {
    let proxy = Arc::new(TestProxy::start_open().await);
    proxy.wecom.reset_secret("hr", "another").expect("an agent");
    for response in get_concurrently(&proxy, 30, JSAPI).await {
        response.assert_proxy_error("token-unavailable", 502, 40001);
    }
    assert_eq!(fetch_count(&proxy, JSAPI), 0);
    assert_eq!(proxy.wecom.observe(|observed| observed.gettoken_count()), 1);
}

#[tokio::test]
async fn refused_token_is_refreshed_for_a_ticket() {
    let proxy = TestProxy::start_open().await;
    proxy.get("/cgi-bin/user/get?userid=zhangsan").await.assert_ok();
    proxy.wecom.revoke_tokens("hr").expect("an agent");
    let response = proxy.get(JSAPI).await;
    ticket_from_response(&response);
    assert_eq!(response.header("x-wecom-retried"), "40014");
}

#[tokio::test]
async fn tickets_are_dropped_only_when_the_secret_changes() {
    let proxy = TestProxy::start_open().await;
    let before =
        [ticket_from_response(&proxy.get(JSAPI).await), ticket_from_response(&proxy.get(AGENT_CONFIG).await)];
    proxy.app.reload().expect("a reload");
    assert_eq!(
        [ticket_from_response(&proxy.get(JSAPI).await), ticket_from_response(&proxy.get(AGENT_CONFIG).await)],
        before
    );
    assert_eq!(fetch_count(&proxy, JSAPI), 1);
    let secret = "not-a-secret-hr-1111111111111111111111111111";
    proxy.wecom.reset_secret("hr", secret).expect("an agent");
    let path = proxy.rewrite_config(OPEN_CONFIG);
    let text = fs::read_to_string(&path).expect("the file");
    fs::write(&path, text.replace(HR_SECRET, secret)).expect("a file");
    proxy.app.reload().expect("a reload");
    let after =
        [ticket_from_response(&proxy.get(JSAPI).await), ticket_from_response(&proxy.get(AGENT_CONFIG).await)];
    assert!(after[0] != before[0] && after[1] != before[1]);
    assert_eq!(fetch_count(&proxy, JSAPI), 2);
}

#[tokio::test]
async fn ticket_request_with_extra_parameters_is_not_cached() {
    let proxy = TestProxy::start_open().await;
    for target in [
        "/cgi-bin/get_jsapi_ticket?debug=1",
        "/cgi-bin/ticket/get?type=wx_card",
        "/cgi-bin/ticket/get?type=agent_config&debug=1",
        "/cgi-bin/ticket/get",
    ] {
        let before = fetch_count(&proxy, target);
        for _ in 0..2 {
            assert_eq!(proxy.get(target).await.status, 200);
        }
        assert_eq!(fetch_count(&proxy, target), before + 2, "{target}");
    }
}

#[tokio::test]
async fn ticket_by_pass_forwards_no_client_headers() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let pass = fetch_pass(&proxy, "hr", "billing").await;
    let request = Request::get(format!("{JSAPI}?access_token={pass}")).header("x-of-the-client", "1");
    ticket_from_response(&proxy.request(request, "").await);
    let record = proxy.last_request(JSAPI);
    assert_eq!(record.query, "access_token=token#1");
    assert!(record.header_values("x-of-the-client").is_empty());
}

#[tokio::test]
async fn cached_ticket_is_returned_only_to_allowed_clients() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let request = |client: &str, target: &str| {
        proxy.request(
            Request::get(target.to_owned()).header("x-api-key", crate::harness::client_key(client)),
            "",
        )
    };
    ticket_from_response(&request("crm", &format!("/hr{JSAPI}")).await);
    ticket_from_response(&request("billing", JSAPI).await);
    request("narrow", JSAPI).await.assert_proxy_error("forbidden", 403, 48002);
    proxy.get(JSAPI).await.assert_proxy_error("unauthenticated", 401, 40001);
    request("billing", &format!("/ops{JSAPI}")).await.assert_proxy_error("unknown-agent", 404, 40035);
    assert_eq!(fetch_count(&proxy, JSAPI), 1);
}
