//! Messages that clients read as server-sent events.

use http::{Request, StatusCode};

use super::{config, event, push, target};
use crate::harness::{
    TestProxy, callback_target::CallbackTarget, client_key, raw_http::RawConnection, with_timeout,
};

const TARGET: &str = "[[callbacks.hr.to]]\nname = \"desktop\"\npull = true\nclients = [\"desktop\"]\n";

/// A stream of events.
pub struct EventStream {
    connection: RawConnection,
    text: String,
}

/// An event: its id and its data.
pub type Event = (String, String);

impl EventStream {
    pub async fn open(proxy: &TestProxy, last_event_id: Option<&str>) -> Self {
        let last = last_event_id.map_or(String::new(), |id| format!("Last-Event-ID: {id}\r\n"));
        let key = client_key("desktop");
        let head = format!(
            "GET /callbacks/hr/events HTTP/1.0\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n{last}\r\n"
        );
        let mut connection = RawConnection::connect(proxy.address()).await;
        connection.send(head).await.expect("sent");
        let head = connection.read_head().await.to_ascii_lowercase();
        assert!(head.contains(" 200 ") && head.contains("content-type: text/event-stream"), "{head}");
        Self { connection, text: String::new() }
    }

    /// The next event; comments are skipped.
    pub async fn next(&mut self) -> Event {
        loop {
            while let Some((block, rest)) = self.text.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.text = rest;
                let id = block.lines().find_map(|line| line.strip_prefix("id: "));
                let data: Vec<_> = block.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
                if let Some(id) = id {
                    return (id.to_owned(), data.join("\n"));
                }
            }
            let byte = with_timeout(self.connection.read_exact(1)).await;
            self.text.push_str(std::str::from_utf8(&byte).unwrap_or("?"));
        }
    }
}

#[tokio::test]
async fn every_reader_gets_every_event_in_order() {
    let proxy = TestProxy::start_with_config(&config(TARGET)).await;
    push(&proxy, &event("x", 0)).await;
    let mut early = EventStream::open(&proxy, None).await;
    assert_eq!(early.next().await.1, event("x", 0), "the oldest kept comes first");
    for number in 1..40 {
        push(&proxy, &event("x", number)).await;
    }
    let mut late = EventStream::open(&proxy, None).await;
    let mut ids = Vec::new();
    for number in 0..40 {
        let (id, data) = late.next().await;
        assert_eq!(data, event("x", number));
        if number > 0 {
            assert_eq!(early.next().await, (id.clone(), data));
        }
        ids.push(id);
    }
    let mut resumed = EventStream::open(&proxy, Some(&ids[37])).await;
    assert_eq!(resumed.next().await, (ids[38].clone(), event("x", 38)));
    let mut from_the_start = EventStream::open(&proxy, Some("unknown")).await;
    assert_eq!(from_the_start.next().await.0, ids[0]);
}

#[tokio::test]
async fn event_id_is_the_same_for_all_targets() {
    let receiver = CallbackTarget::start().await;
    let to = target("crm", format!("http://{}/", receiver.address), "") + TARGET;
    let proxy = TestProxy::start_with_config(&config(&to)).await;
    push(&proxy, &event("x", 0)).await;
    let id = EventStream::open(&proxy, None).await.next().await.0;
    assert_eq!(receiver.wait_for(1).await[0].header("x-wecom-event-id"), id);
}

#[tokio::test]
async fn only_listed_clients_read_events() {
    let proxy = TestProxy::start_with_config(&config(TARGET)).await;
    let get = async |path: &str, key: Option<String>| {
        let request = Request::get(path.to_owned());
        let request = key.into_iter().fold(request, |request, key| request.header("x-api-key", key));
        proxy.request(request, "").await
    };
    get("/callbacks/hr/events", None).await.assert_proxy_error("unauthenticated", 401, 40001);
    let wrong = get("/callbacks/hr/events", Some("wrong-key-0000000000".to_owned())).await;
    wrong.assert_proxy_error("unauthenticated", 401, 40001);
    let other = get("/callbacks/hr/events", Some(client_key("other"))).await;
    let unknown = get("/callbacks/no/events", Some(client_key("desktop"))).await;
    other.assert_proxy_error("no-route", 404, 40035);
    assert_eq!((other.status, other.text()), (unknown.status, unknown.text()));
    assert_eq!(get("/callbacks/hr/more", Some(client_key("desktop"))).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn streams_end_when_the_proxy_stops() {
    let proxy = TestProxy::start_with_config(&config(TARGET)).await;
    let mut stream = EventStream::open(&proxy, None).await;
    let (closed, drained) = tokio::join!(stream.connection.read_to_end(), proxy.app.shutdown());
    closed.1.expect("an orderly end");
    assert!(drained, "no stream keeps the proxy from ending");
}

#[tokio::test]
async fn stream_ends_once_its_key_is_revoked() {
    let proxy = TestProxy::start_with_config(&config(TARGET)).await;
    let mut stream = EventStream::open(&proxy, None).await;
    push(&proxy, &event("x", 0)).await;
    stream.next().await;
    // What does not concern the key leaves the stream open.
    proxy.rewrite_config(&config(TARGET).replace("[clients.other]", "[clients.another]"));
    proxy.app.reload().expect("a valid file");
    push(&proxy, &event("x", 1)).await;
    assert_eq!(stream.next().await.1, event("x", 1));
    proxy.rewrite_config(&config(TARGET).replace("key-of-desktop-0000000000", "new-key-of-desktop-000000"));
    proxy.app.reload().expect("a valid file");
    let rest = with_timeout(stream.connection.read_to_end()).await;
    rest.1.expect("an orderly end");
}

#[tokio::test]
async fn target_that_was_read_is_pushed_to_after_a_reload() {
    let receiver = CallbackTarget::start().await;
    let proxy = TestProxy::start_with_config(&config(TARGET)).await;
    push(&proxy, &event("x", 0)).await;
    proxy.rewrite_config(&config(&target("desktop", format!("http://{}/", receiver.address), "")));
    proxy.app.reload().expect("a valid file");
    push(&proxy, &event("x", 1)).await;
    assert_eq!(receiver.wait_for(1).await[0].text(), event("x", 1));
}
