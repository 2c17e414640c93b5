//! What a caller showed does not stay in memory that is free, or used again for something else.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use sha2::{Digest, Sha256};
use wecom_proxy::simulator::Settings;

use crate::{
    gettoken::{CORPID, pass_from_body},
    harness::{ECHO, agent_section},
    leak_detector,
    process::Process,
    raw_http::RawConnection,
};

/// Where the stacks of its threads are; `None` while one of them runs.
fn stack_pointers(id: u32) -> Option<Vec<u64>> {
    let tasks = fs::read_dir(format!("/proc/{id}/task")).expect("it runs");
    let pointer = |task: std::io::Result<fs::DirEntry>| {
        let said = fs::read_to_string(task.expect("a thread").path().join("syscall")).ok()?;
        let pointer = said.split_whitespace().rev().nth(1)?.strip_prefix("0x")?.to_owned();
        u64::from_str_radix(&pointer, 16).ok()
    };
    tasks.map(pointer).collect()
}

/// The memory that a process writes to, but for its stacks: what a hash function leaves on them is overwritten by the next
/// call. `None` while that cannot be told.
fn writable_memory(id: u32) -> Option<Vec<Vec<u8>>> {
    let mut file = File::open(format!("/proc/{id}/mem")).ok()?;
    let (stacks, maps) =
        (stack_pointers(id)?, fs::read_to_string(format!("/proc/{id}/maps")).expect("it runs"));
    let mut parts = Vec::new();
    for map in maps.lines().filter(|map| map.contains(" rw")) {
        let (from, rest) = map.split_once('-').expect("a range");
        let end = rest.split(' ').next().expect("its end");
        let [from, end] = [from, end].map(|it| u64::from_str_radix(it, 16).expect("an address"));
        if stacks.iter().any(|pointer| (from..end).contains(pointer)) {
            continue;
        }
        let mut part = vec![0; (end - from) as usize];
        // What the kernel does not let be read holds nothing of ours.
        if file.seek(SeekFrom::Start(from)).and_then(|_| file.read_exact(&mut part)).is_ok() {
            parts.push(part);
        }
    }
    Some(parts)
}

/// Requests on one connection, one after the other, and the body of the last answer.
async fn send_requests(process: &Process, requests: &[String]) -> String {
    let mut line = RawConnection::connect(process.address().await).await;
    let mut body = String::new();
    for request in requests {
        line.send(request).await.expect("the proxy reads");
        let (head, answer) = line.read_response().await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}{answer}");
        body = answer;
    }
    body
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn credentials_are_wiped_when_their_connection_closes() {
    let wecom = leak_detector::start_simulator(Settings::default()).await;
    let keys = ["bearer", "basic", "bought"].map(|name| format!("a-key-{name}-{:016x}", random_u64(name)));
    let [bearer, basic, bought] = &keys;
    let clients: String = (keys.iter().enumerate())
        .map(|(nth, key)| {
            let hash: String = Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect();
            format!("[clients.c{nth}]\nkey_sha256 = \"{hash}\"\nagents = [\"hr\"]\n")
        })
        .collect();
    let agents: String = Settings::default().agents.iter().map(|agent| agent_section(agent, "")).collect();
    let dir = tempfile::TempDir::new().expect("a directory");
    let path = dir.path().join("proxy.toml");
    let server =
        format!("[server]\nlisten = \"127.0.0.1:0\"\n[upstream]\nurl = \"http://{}\"\n", wecom.api_addr());
    fs::write(&path, format!("{server}{agents}{clients}")).expect("written");
    let process = Process::serve_with_readable_memory(&path).await;

    let cookie = format!("a-cookie-{:016x}", random_u64("cookie"));
    let in_base64 = BASE64_STANDARD.encode(format!("c1:{basic}"));
    let get = |lines: &str| vec![format!("GET /hr{ECHO} HTTP/1.1\r\nHost: x\r\n{lines}\r\n")];
    send_requests(&process, &get(&format!("Authorization: Bearer {bearer}\r\nCookie: {cookie}\r\n"))).await;
    send_requests(&process, &get(&format!("Authorization: Basic {in_base64}\r\nX-Request-Id: 1\r\n"))).await;
    let gettoken =
        format!("GET /hr/cgi-bin/gettoken?corpid={CORPID}&corpsecret={bought} HTTP/1.1\r\nHost: y\r\n\r\n");
    let pass = pass_from_body(&send_requests(&process, &[gettoken]).await);
    let by_pass = format!("GET {ECHO}?access_token={pass} HTTP/1.1\r\nHost: z\r\n\r\n");
    // The last line of a connection is remembered until there is another.
    let other = format!("GET {ECHO}?access_token=x HTTP/1.1\r\nHost: v\r\nX-Api-Key: {bearer}\r\n\r\n");
    send_requests(&process, &[by_pass, other]).await;

    let secrets = [
        ("bearer", bearer),
        ("basic", basic),
        ("bought", bought),
        ("cookie", &cookie),
        ("in_base64", &in_base64),
        ("pass", &pass),
    ];
    let holds = |parts: &[Vec<u8>], secret: &str| {
        parts.iter().any(|part| memchr::memmem::find(part, secret.as_bytes()).is_some())
    };
    // The last connection may be closing still.
    let mut found = None;
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let Some(parts) = writable_memory(process.id()) else { continue };
        let held = secrets.into_iter().filter(|(_, secret)| holds(&parts, secret)).map(|(name, _)| name);
        let held = held.collect::<Vec<_>>();
        let is_clean = held.is_empty();
        found = Some(held);
        if is_clean {
            break;
        }
    }
    let found =
        found.expect("the proxy's memory can be read: run the tests as root, or allow user namespaces");
    assert!(found.is_empty(), "{found:?}");
}

/// A number that this run of the test alone has.
fn random_u64(name: &str) -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(name)
}
