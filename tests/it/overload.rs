//! More than the proxy can take: who is too much is told so at once, and the others are served as ever.

use std::{net::SocketAddr, process::Command, time::Duration};

use http::Request;
use tokio::{task::JoinHandle, time::Instant};
use wecom_proxy::simulator::{Fault, Settings, Simulator};

use crate::{
    process::Process,
    stage::{Caller, ECHO, KEYED, OPEN, Reply, Stage, USER_GET, key, soon, wait_for, write_config},
    wire::Line,
};

/// Far less than any time-out here that a story could wait for by mistake.
const AT_ONCE: Duration = Duration::from_secs(20);

/// Places for 64 and a wait that no story outlasts.
fn scarce(toml: &str) -> String {
    toml.replace("[admin]", "max_in_flight = 64\nqueue_timeout = \"10m\"\n[admin]")
}

/// Calls on a connection each that hold their places; those that find none wait.
struct Flood(Vec<JoinHandle<Reply>>);

impl Flood {
    async fn of(stage: &Stage, count: usize, path: &str, client: &str) -> Self {
        let address = stage.address();
        let call = |_| {
            let request = Request::get(path).header("x-api-key", key(client));
            tokio::spawn(async move { Caller::http1(address).await.call(request, "").await })
        };
        Self((0..count).map(call).collect())
    }

    async fn all_ok(self) {
        for call in self.0 {
            soon(call).await.expect("no panic").is_ok();
        }
    }
}

/// How many calls of one kind WeCom holds when a flood has taken all that it gets: of 64 places 59.
async fn is_full(stage: &Stage) {
    stage.wecom.wait_until(|seen| seen.in_flight() >= 59).await.expect("a flood");
}

async fn as_client(stage: &Stage, client: &str, path: &str) -> Reply {
    let came = Instant::now();
    let reply = stage.call(Request::get(path).header("x-api-key", key(client)), "").await;
    assert!(came.elapsed() < AT_ONCE, "{client} waited {:?} for {path}", came.elapsed());
    reply
}

#[tokio::test]
async fn neither_a_client_nor_an_agent_nor_an_endpoint_takes_all_places() {
    let stage = Stage::with(&scarce(KEYED)).await;
    for agent in ["hr", "ops"] {
        as_client(&stage, "crm", &format!("/{agent}{USER_GET}")).await.is_ok();
    }
    stage.wecom.inject(Fault::hold().on(ECHO)).expect("a fault");
    let flood = Flood::of(&stage, 90, &format!("/hr{ECHO}"), "crm").await;
    is_full(&stage).await;
    // Another client, another agent of the same client, another endpoint of the same agent.
    as_client(&stage, "billing", &format!("/hr{USER_GET}")).await.is_ok();
    as_client(&stage, "crm", &format!("/ops{USER_GET}")).await.is_ok();
    as_client(&stage, "crm", &format!("/hr{USER_GET}")).await.is_ok();
    stage.wecom.release();
    flood.all_ok().await;
    assert!(stage.wecom.look(|seen| seen.in_flight_max()) <= 64);
}

#[tokio::test]
async fn without_clients_it_is_agents_that_share() {
    let stage = Stage::with(&scarce(OPEN)).await;
    as_client(&stage, "nobody", &format!("/hr{USER_GET}")).await.is_ok();
    stage.wecom.inject(Fault::hold().of("hr")).expect("a fault");
    let flood = Flood::of(&stage, 90, &format!("/hr{ECHO}"), "nobody").await;
    is_full(&stage).await;
    as_client(&stage, "nobody", &format!("/ops{USER_GET}")).await.is_ok();
    stage.wecom.release();
    flood.all_ok().await;
}

#[tokio::test]
async fn who_comes_after_a_flood_has_the_next_turn() {
    let stage =
        Stage::with(&KEYED.replace("[admin]", "max_in_flight = 1\nqueue_timeout = \"10m\"\n[admin]")).await;
    as_client(&stage, "crm", &format!("/hr{USER_GET}")).await.is_ok();
    // Each call of the flood takes its time: 40 of them would take two seconds and more.
    stage.wecom.inject(Fault::delay(Duration::from_millis(50)).on(ECHO)).expect("a fault");
    let flood = Flood::of(&stage, 40, &format!("/hr{ECHO}"), "crm").await;
    stage.wecom.wait_until(|seen| seen.received(ECHO) >= 2).await.expect("a flood");
    as_client(&stage, "billing", &format!("/hr{USER_GET}")).await.is_ok();
    let before = stage.wecom.look(|seen| seen.received(ECHO));
    assert!(before < 20, "{before} of the flood went first");
    flood.all_ok().await;
}

#[tokio::test]
async fn an_agent_whose_gettoken_hangs_takes_no_place_from_another() {
    let stage =
        Stage::with(&OPEN.replace("[admin]", "max_in_flight = 2\nqueue_timeout = \"10m\"\n[admin]")).await;
    stage.wecom.inject(Fault::hold().on("/cgi-bin/gettoken").of("hr")).expect("a fault");
    let flood = Flood::of(&stage, 20, &format!("/hr{USER_GET}"), "nobody").await;
    stage.wecom.wait_until(|seen| seen.received("/cgi-bin/gettoken") == 1).await.expect("a gettoken");
    for _ in 0..5 {
        as_client(&stage, "nobody", &format!("/ops{USER_GET}")).await.is_ok();
    }
    for call in &flood.0 {
        call.abort();
    }
    stage.wecom.release();
}

#[tokio::test]
async fn who_finds_the_row_full_is_told_at_once() {
    let stage =
        Stage::with(&KEYED.replace("[admin]", "max_in_flight = 1\nqueue_timeout = \"10m\"\n[admin]")).await;
    as_client(&stage, "crm", &format!("/hr{USER_GET}")).await.is_ok();
    stage.wecom.inject(Fault::hold().on(ECHO)).expect("a fault");
    // Over HTTP/2, which needs few connections for many requests.
    let mut refused = Vec::new();
    let mut waiting = Vec::new();
    for _ in 0..5 {
        let Caller::Http2(sender) = Caller::http2(stage.address()).await else { unreachable!() };
        for _ in 0..240 {
            let mut sender = sender.clone();
            let target = format!("http://proxy.test/hr{ECHO}");
            let request = Request::get(target).header("x-api-key", key("crm")).body(Default::default());
            waiting.push(tokio::spawn(async move {
                sender.ready().await.expect("a connection");
                Reply::take(sender.send_request(request.expect("a request")).await.expect("an answer")).await
            }));
        }
    }
    let some = async {
        while refused.len() < 100 {
            for nth in (0..waiting.len()).rev() {
                if waiting[nth].is_finished() {
                    refused.push(waiting.swap_remove(nth).await.expect("no panic"));
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(some).await;
    for reply in refused {
        let wait =
            reply.is_own("overloaded", 503, -1).header("retry-after").parse::<u32>().expect("a number");
        assert!(wait >= 1);
    }
    // There is room in the row for another, who has the next turn.
    let mut late = tokio::spawn({
        let (address, request) =
            (stage.address(), Request::get(format!("/hr{USER_GET}")).header("x-api-key", key("billing")));
        async move { Caller::http1(address).await.call(request, "").await }
    });
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut late).await.is_err(), "it waits");
    stage.wecom.release();
    soon(late).await.expect("no panic").is_ok();
    for call in waiting {
        call.abort();
    }
}

/// The real program with these lines in `[server]`.
async fn program(lines: &str) -> (Simulator, tempfile::TempDir, Process, SocketAddr) {
    let wecom = Simulator::local(Settings::default()).await.expect("a simulator");
    let dir = tempfile::TempDir::new().expect("a directory");
    let toml = OPEN.replace("[upstream]", &format!("{lines}\n[upstream]"));
    let proxy = Process::serve(&write_config(&dir, wecom.api_addr(), &Settings::default(), &toml)).await;
    let address = proxy.address().await;
    (wecom, dir, proxy, address)
}

fn call() -> String {
    format!("GET /hr{USER_GET} HTTP/1.1\r\nHost: proxy.test\r\n\r\n")
}

/// Connections on which one request was answered, and which are kept.
async fn kept(address: SocketAddr, count: usize) -> Vec<Line> {
    let mut lines = Vec::new();
    for _ in 0..count {
        let mut line = Line::to(address).await;
        line.say(call()).await.expect("it is taken");
        assert!(line.answer().await.0.starts_with("HTTP/1.1 200"));
        lines.push(line);
    }
    lines
}

#[tokio::test]
async fn in_a_full_house_the_longest_idle_connections_make_room_and_the_log_says_so_once() {
    let (_wecom, _dir, proxy, address) = program("max_connections = 6").await;
    let mut first = kept(address, 2).await;
    let mut http2 = Caller::http2(address).await;
    http2.get(USER_GET).await.is_ok();
    let mut second = kept(address, 3).await;
    let began = Instant::now();
    let newcomers = kept(address, 3).await;
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    for line in &mut first {
        assert_eq!(line.rest().await.0, b"", "the oldest were closed");
    }
    let Caller::Http2(sender) = &mut http2 else { unreachable!() };
    wait_for("the end of HTTP/2", async || sender.is_closed() || sender.ready().await.is_err()).await;
    for line in second.iter_mut().chain(&mut { newcomers }) {
        line.say(call()).await.expect("it is taken");
        assert!(line.answer().await.0.starts_with("HTTP/1.1 200"), "the younger ones are kept");
    }
    let ended = proxy.stop().await;
    assert_eq!(ended.err.matches("max_connections is reached").count(), 1, "{}", ended.err);
}

#[tokio::test]
async fn connections_with_a_request_stay_and_who_comes_then_waits_for_one_to_end() {
    let (wecom, _dir, _proxy, address) = program("max_connections = 2").await;
    kept(address, 1).await;
    wecom.inject(Fault::hold().on("/cgi-bin/user/get").times(2)).expect("a fault");
    let mut busy = Vec::new();
    for _ in 0..2 {
        let mut line = Line::to(address).await;
        line.say(call()).await.expect("it is taken");
        busy.push(line);
    }
    wecom.wait_until(|seen| seen.in_flight() == 2).await.expect("two requests");
    let mut third = Line::to(address).await;
    third.say(call()).await.expect("it is taken");
    assert!(tokio::time::timeout(Duration::from_millis(700), third.more()).await.is_err(), "it waits");
    wecom.release();
    for line in &mut busy {
        assert!(line.answer().await.0.starts_with("HTTP/1.1 200"), "it was not disturbed");
    }
    assert!(third.answer().await.0.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn what_only_begins_keeps_nobody_out_of_a_full_house() {
    let lines = "max_connections = 3\nheader_timeout = \"60s\"\nidle_timeout = \"60s\"";
    let (_wecom, _dir, _proxy, address) = program(lines).await;
    let http2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x09\x01\x01\0\0\0\x01\x82\x86";
    for half in [&b""[..], b"\r\n", b"GET /hr", b"GET / HTTP/1.1\r\nHost: x\r\n", &http2[..20], http2] {
        let mut crowd = Vec::new();
        for _ in 0..3 {
            let mut line = Line::to(address).await;
            line.say(half).await.expect("it is taken");
            crowd.push(line);
        }
        // One drips on.
        let (mut drips, mut last) = (tokio::time::interval(Duration::from_millis(100)), crowd.pop());
        let drip = async {
            while let Some(line) = &mut last {
                drips.tick().await;
                if !half.is_empty() && line.say("x").await.is_err() {
                    last = None;
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            lines = kept(address, 3) => assert_eq!(lines.len(), 3),
            () = drip => unreachable!(),
        }
        for line in &mut crowd {
            assert!(!line.rest().await.0.starts_with(b"HTTP/1.1 200"), "{half:?} has made room");
        }
    }
}

#[tokio::test]
async fn fewer_connections_than_listeners_starve_none_of_them() {
    let wecom = Simulator::local(Settings::default()).await.expect("a simulator");
    let dir = tempfile::TempDir::new().expect("a directory");
    let three = "[\"127.0.0.1:0\", \"127.0.0.2:0\", \"unix:{dir}/proxy.sock\"]\nmax_connections = 1";
    let toml = OPEN.replacen("\"127.0.0.1:0\"", three, 1);
    let proxy = Process::serve(&write_config(&dir, wecom.api_addr(), &Settings::default(), &toml)).await;
    let line = proxy.err.line("ready listen=").await;
    let listen = crate::process::field(&line, "listen");
    let tcp: Vec<SocketAddr> = listen.split(", ").filter_map(|address| address.parse().ok()).collect();
    assert_eq!(tcp.len(), 2, "{line}");
    for _ in 0..2 {
        for address in &tcp {
            Caller::http1(*address).await.get(USER_GET).await.is_ok();
        }
        let unix =
            soon(tokio::net::UnixStream::connect(dir.path().join("proxy.sock"))).await.expect("a socket");
        Caller::http1_over(unix).await.get(USER_GET).await.is_ok();
    }
}

#[tokio::test]
async fn without_descriptors_it_neither_spins_nor_floods_the_log_and_goes_on_when_there_are_some() {
    let (_wecom, _dir, proxy, address) = program("").await;
    Caller::http1(address).await.get(USER_GET).await.is_ok();
    proxy.allow_descriptors(64);
    // They begin a request: none of them is idle.
    let mut crowd = Vec::new();
    for _ in 0..100 {
        let mut line = Line::to(address).await;
        line.say("GET ").await.expect("it is taken");
        crowd.push(line);
    }
    proxy.err.line("no connection can be accepted").await;
    let before = proxy.cpu();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let spent = proxy.cpu() - before;
    assert!(spent < Duration::from_millis(200), "{spent:?} of processor time in half a second");
    for line in crowd {
        line.reset();
    }
    let mut caller = Line::to(address).await;
    caller.say(call()).await.expect("it is taken");
    assert!(caller.answer().await.0.starts_with("HTTP/1.1 200"));
    let ended = proxy.stop().await;
    assert_eq!(ended.err.matches("no connection can be accepted").count(), 1, "{}", ended.err);
    assert_eq!(ended.status, 0);
}

#[tokio::test]
async fn where_descriptors_are_few_there_are_some_for_the_upstream_and_idle_connections_make_room() {
    let wecom = Simulator::local(Settings::default()).await.expect("a simulator");
    let dir = tempfile::TempDir::new().expect("a directory");
    let config = write_config(&dir, wecom.api_addr(), &Settings::default(), OPEN);
    let mut command = Command::new("sh");
    let words = "ulimit -n 64; exec \"$0\" --config \"$1\"";
    command.args(["-c", words, env!("CARGO_BIN_EXE_wecom-proxy")]).arg(config);
    command.env_remove("RUST_LOG").env_remove("NOTIFY_SOCKET");
    let proxy = Process::start(command);
    proxy.err.line("too few open files for max_connections").await;
    let address = proxy.address().await;
    let mut silent = Vec::new();
    // More than twice as many as there is room for: all of the first ones have to go.
    for _ in 0..50 {
        silent.push(Line::to(address).await);
    }
    let mut callers = kept(address, 3).await;
    assert_eq!(silent[0].rest().await.0, b"", "the oldest were closed");
    callers[0].say(call()).await.expect("it is taken");
    assert!(callers[0].answer().await.0.starts_with("HTTP/1.1 200"));
    let ended = proxy.stop().await;
    assert!(!ended.err.contains("no connection can be accepted"), "{}", ended.err);
}

#[tokio::test]
async fn it_takes_as_many_descriptors_as_the_system_lets_it() {
    let wecom = Simulator::local(Settings::default()).await.expect("a simulator");
    let dir = tempfile::TempDir::new().expect("a directory");
    let settings = OPEN.replace("[server]\n", "[server]\nmax_connections = 500\n");
    let config = write_config(&dir, wecom.api_addr(), &Settings::default(), &settings);
    let mut command = Command::new("sh");
    let words = "ulimit -Hn 1024; ulimit -Sn 64; exec \"$0\" --config \"$1\"";
    command.args(["-c", words, env!("CARGO_BIN_EXE_wecom-proxy")]).arg(config);
    command.env_remove("RUST_LOG").env_remove("NOTIFY_SOCKET");
    let proxy = Process::start(command);
    proxy.err.line("ready listen=").await;
    let ended = proxy.stop().await;
    assert!(!ended.err.contains("too few open files"), "{}", ended.err);
}
