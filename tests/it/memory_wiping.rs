//! Credentials of closed connections do not stay in freed or reused memory.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use wecom_proxy::simulator::Settings;

use crate::{
    gettoken::{CORPID, pass_from_body},
    harness::{ECHO, agent_section, sha256},
    leak_detector,
    process::Process,
    raw_http::RawConnection,
};

/// Stack pointers of all threads of a process; `None` while one of them runs.
fn stack_pointers(pid: u32) -> Option<Vec<u64>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("a running process");
    let pointer = |task: std::io::Result<fs::DirEntry>| {
        let syscall = fs::read_to_string(task.expect("a thread").path().join("syscall")).ok()?;
        let pointer = syscall.split_whitespace().rev().nth(1)?.strip_prefix("0x")?.to_owned();
        u64::from_str_radix(&pointer, 16).ok()
    };
    tasks.map(pointer).collect()
}

/// The writable memory of a process without its thread stacks: what a hash function leaves on a stack is overwritten by the
/// next call. `None` while the stacks are unknown.
fn writable_memory(pid: u32) -> Option<Vec<Vec<u8>>> {
    let mut file = File::open(format!("/proc/{pid}/mem")).ok()?;
    let (stacks, mappings) =
        (stack_pointers(pid)?, fs::read_to_string(format!("/proc/{pid}/maps")).expect("a running process"));
    let mut regions = Vec::new();
    for mapping in mappings.lines().filter(|mapping| mapping.contains(" rw")) {
        let (start, rest) = mapping.split_once('-').expect("a range");
        let end = rest.split(' ').next().expect("its end");
        let [start, end] = [start, end].map(|bound| u64::from_str_radix(bound, 16).expect("an address"));
        if stacks.iter().any(|pointer| (start..end).contains(pointer)) {
            continue;
        }
        let mut region = vec![0; (end - start) as usize];
        // A mapping that the kernel refuses to read holds no data of the program.
        if file.seek(SeekFrom::Start(start)).and_then(|_| file.read_exact(&mut region)).is_ok() {
            regions.push(region);
        }
    }
    Some(regions)
}

/// Sends requests one after the other on one connection; returns the body of the last response.
async fn send_requests(process: &Process, requests: &[String]) -> String {
    let mut connection = RawConnection::connect(process.address().await).await;
    let mut body = String::new();
    for request in requests {
        connection.send(request).await.expect("sent");
        let (head, response_body) = connection.read_response().await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}{response_body}");
        body = response_body;
    }
    body
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn credentials_are_wiped_when_their_connection_closes() {
    let wecom = leak_detector::start_simulator(Settings::default()).await;
    let keys = ["bearer", "basic", "exchanged"].map(|name| format!("a-key-{name}-{:016x}", random_u64(name)));
    let [bearer, basic, exchanged] = &keys;
    let clients: String = (keys.iter().enumerate())
        .map(|(nth, key)| {
            let hash = sha256(key);
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
    let encoded = BASE64_STANDARD.encode(format!("c1:{basic}"));
    let get = |lines: &str| vec![format!("GET /hr{ECHO} HTTP/1.1\r\nHost: x\r\n{lines}\r\n")];
    send_requests(&process, &get(&format!("Authorization: Bearer {bearer}\r\nCookie: {cookie}\r\n"))).await;
    send_requests(&process, &get(&format!("Authorization: Basic {encoded}\r\nX-Request-Id: 1\r\n"))).await;
    let gettoken = format!(
        "GET /hr/cgi-bin/gettoken?corpid={CORPID}&corpsecret={exchanged} HTTP/1.1\r\nHost: y\r\n\r\n"
    );
    let pass = pass_from_body(&send_requests(&process, &[gettoken]).await);
    let with_pass = format!("GET {ECHO}?access_token={pass} HTTP/1.1\r\nHost: z\r\n\r\n");
    // A connection caches its last request line; a second request replaces it.
    let next = format!("GET {ECHO}?access_token=x HTTP/1.1\r\nHost: v\r\nX-Api-Key: {bearer}\r\n\r\n");
    send_requests(&process, &[with_pass, next]).await;

    let secrets = [
        ("bearer", bearer),
        ("basic", basic),
        ("exchanged", exchanged),
        ("cookie", &cookie),
        ("encoded", &encoded),
        ("pass", &pass),
    ];
    let contains = |regions: &[Vec<u8>], secret: &str| {
        regions.iter().any(|region| memchr::memmem::find(region, secret.as_bytes()).is_some())
    };
    // The last connection may still be closing.
    let mut found = None;
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let Some(regions) = writable_memory(process.id()) else { continue };
        let leaked =
            secrets.into_iter().filter(|(_, secret)| contains(&regions, secret)).map(|(name, _)| name);
        let leaked = leaked.collect::<Vec<_>>();
        let is_clean = leaked.is_empty();
        found = Some(leaked);
        if is_clean {
            break;
        }
    }
    let found =
        found.expect("the proxy's memory can be read: run the tests as root, or allow user namespaces");
    assert!(found.is_empty(), "{found:?}");
}

/// A random number for this test run.
fn random_u64(name: &str) -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(name)
}
