//! Socket activation: successive processes on one inherited listening socket refuse no client.

use std::{
    net::{SocketAddr, TcpListener},
    os::{fd::OwnedFd, linux::net::SocketAddrExt, unix::net::UnixListener},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tempfile::TempDir;
use tokio::{sync::watch, task::JoinHandle};
use wecom_proxy::simulator::Simulator;

use crate::{
    harness::{OPEN_CONFIG, TestClient, USER_GET, start_simulator_with_config, wait_for, with_timeout},
    process::Process,
    raw_http::RawConnection,
};

/// The simulator, and a configuration with this `listen` address.
async fn start_simulator(listen: &str) -> (Simulator, TempDir, PathBuf) {
    let toml = OPEN_CONFIG.replacen("127.0.0.1:0", listen, 1);
    let (wecom, dir, config) = start_simulator_with_config(&toml).await;
    (wecom, dir, config)
}

fn listening_socket() -> (TcpListener, SocketAddr) {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = socket.local_addr().expect("an address");
    (socket, address)
}

async fn start_with_socket(socket: &TcpListener, config: &std::path::Path) -> Process {
    let inherited = OwnedFd::from(socket.try_clone().expect("a descriptor"));
    let proxy = Process::start_with_socket(inherited, config);
    proxy.err.wait_for_line("ready listen=").await;
    proxy
}

/// Starts clients that open a connection per request until stopped, and count the responses.
fn start_load(
    address: SocketAddr,
    completed: &Arc<AtomicU64>,
    stopped: &watch::Receiver<bool>,
) -> Vec<JoinHandle<()>> {
    let client = |_| {
        let (completed, stopped) = (completed.clone(), stopped.clone());
        tokio::spawn(async move {
            while !*stopped.borrow() {
                let mut connection = RawConnection::connect(address).await;
                let request =
                    format!("GET /hr{USER_GET} HTTP/1.1\r\nHost: proxy.test\r\nConnection: close\r\n\r\n");
                connection.send(request).await.expect("sent");
                let (response, end) = connection.read_to_end().await;
                let response = String::from_utf8_lossy(&response);
                assert!(response.starts_with("HTTP/1.1 200") && end.is_ok(), "{response:?} {end:?}");
                completed.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    (0..8).map(client).collect()
}

#[tokio::test]
async fn socket_handover_refuses_no_client() {
    let (socket, address) = listening_socket();
    let (_wecom, _dir, config) = start_simulator(&address.to_string()).await;
    let mut proxy = start_with_socket(&socket, &config).await;
    assert_eq!(proxy.address().await, address);
    let (stop, stopped) = watch::channel(false);
    let completed = Arc::new(AtomicU64::new(0));
    let clients = start_load(address, &completed, &stopped);
    let wait_for_progress = async || {
        let before = completed.load(Ordering::Relaxed);
        wait_for("more responses", async || completed.load(Ordering::Relaxed) > before + 20).await;
    };
    wait_for_progress().await;
    for overlapping in [true, false, true, false] {
        // Overlapping with the old process, or after it: connections then wait in the socket's backlog.
        if overlapping {
            let next = start_with_socket(&socket, &config).await;
            assert_eq!(std::mem::replace(&mut proxy, next).stop().await.status, 0);
        } else {
            proxy.signal("TERM");
            assert_eq!(proxy.wait().await.status, 0);
            proxy = start_with_socket(&socket, &config).await;
        }
        wait_for_progress().await;
    }
    stop.send_replace(true);
    for client in clients {
        with_timeout(client).await.expect("no refused client");
    }
    assert_eq!(proxy.stop().await.status, 0);
}

#[tokio::test]
async fn inherited_socket_missing_in_the_config_is_an_error() {
    let (socket, address) = listening_socket();
    let (_wecom, _dir, config) = start_simulator("127.0.0.1:0").await;
    let output = Process::start_with_socket(socket.into(), &config).wait().await;
    assert_eq!(output.status, 1, "{}", output.err);
    for expected in [&*address.to_string(), "LISTEN_FDS", "server.listen"] {
        assert!(output.err.contains(expected), "{}", output.err);
    }
}

/// systemd's `ListenStream=8080` is `[::]`, which is not `0.0.0.0` and overlaps with it.
#[tokio::test]
async fn inherited_socket_of_another_address_names_both() {
    let socket = TcpListener::bind("[::]:0").expect("a port");
    let port = socket.local_addr().expect("an address").port();
    let (_wecom, _dir, config) = start_simulator("127.0.0.1:0").await;
    let text = std::fs::read_to_string(&config).expect("the configuration");
    let listen = format!("listen = \"0.0.0.0:{port}\"\nopen = true");
    std::fs::write(&config, text.replacen("listen = \"127.0.0.1:0\"", &listen, 1)).expect("written");
    let output = Process::start_with_socket(socket.into(), &config).wait().await;
    assert_eq!(output.status, 1, "{}", output.err);
    for expected in [format!("inherited socket [::]:{port}"), format!("which name 0.0.0.0:{port}")] {
        assert!(output.err.contains(&expected), "{}", output.err);
    }
}

#[tokio::test]
async fn inherited_descriptor_that_is_no_listener_is_refused() {
    let (_wecom, dir, config) = start_simulator("127.0.0.1:0").await;
    let file = std::fs::File::create(dir.path().join("file")).expect("a file");
    let (connected, _other) = std::os::unix::net::UnixStream::pair().expect("a pair");
    for inherited in [OwnedFd::from(file), connected.into()] {
        let output = Process::start_with_socket(inherited, &config).wait().await;
        assert_eq!(output.status, 1, "{}", output.err);
        assert!(output.err.contains("descriptor 3 from LISTEN_FDS is not a listening"), "{}", output.err);
    }
}

#[tokio::test]
async fn inherited_abstract_socket_is_refused_with_its_cause() {
    let (_wecom, dir, config) = start_simulator("127.0.0.1:0").await;
    let name = dir.path().as_os_str().as_encoded_bytes();
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name).expect("a name");
    let socket = UnixListener::bind_addr(&address).expect("a socket");
    let output = Process::start_with_socket(socket.into(), &config).wait().await;
    assert_eq!(output.status, 1, "{}", output.err);
    assert!(output.err.contains("descriptor 3 from LISTEN_FDS is an abstract"), "{}", output.err);
}

#[tokio::test]
async fn second_proxy_on_one_address_is_refused() {
    let (socket, address) = listening_socket();
    let (_wecom, _dir, config) = start_simulator(&address.to_string()).await;
    let _first = start_with_socket(&socket, &config).await;
    let second = crate::process::run_wecom_proxy(&["--config", config.to_str().expect("UTF-8")]).await;
    assert_eq!(second.status, 1);
    assert!(second.err.contains("cannot listen on"), "{}", second.err);
}

#[tokio::test]
async fn inherited_unix_socket_file_is_kept_on_exit() {
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("inherited.sock");
    let socket = UnixListener::bind(&path).expect("a socket");
    let (_wecom, _dir, config) = start_simulator(&format!("unix:{}", path.display())).await;
    for _ in 0..2 {
        let proxy = Process::start_with_socket(socket.try_clone().expect("a descriptor").into(), &config);
        proxy.err.wait_for_line("ready listen=").await;
        let stream = with_timeout(tokio::net::UnixStream::connect(&path)).await.expect("a connection");
        TestClient::http1_over(stream).await.get(USER_GET).await.assert_ok();
        assert_eq!(proxy.stop().await.status, 0);
        assert!(path.exists());
    }
}
