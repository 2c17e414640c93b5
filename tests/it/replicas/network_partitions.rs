//! Network partitions between one replica and the store: by a relay that closes its connections, and by network namespaces
//! that drop packets silently.

use std::{
    net::SocketAddr,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};
use wecom_proxy::simulator::{Fault, Settings, Simulator};

use super::{GETTOKEN, Replicas, upstream_counts};
use crate::{
    harness::{
        OPEN_CONFIG, TestClient, TestProxy, TestResponse, USER_GET, wait_for, with_timeout, write_config,
    },
    process::{Process, run, tool},
    redis_server::{RedisServer, STORE_KEY},
};

/// A TCP relay that can be cut: open connections are then closed, and new ones are closed at once.
pub(super) struct CuttableRelay {
    pub(super) address: SocketAddr,
    pub(super) is_cut: watch::Sender<bool>,
}

impl CuttableRelay {
    pub(super) async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (is_cut, cut_signal) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut cut_signal = cut_signal.clone();
                tokio::spawn(async move {
                    let forward = async {
                        let mut upstream = TcpStream::connect(server).await?;
                        copy_bidirectional(&mut client, &mut upstream).await
                    };
                    tokio::select! {
                        biased;
                        _ = cut_signal.wait_for(|is_cut| *is_cut) => {}
                        _ = forward => {}
                    }
                });
            }
        });
        Self { address, is_cut }
    }
}

#[tokio::test]
async fn partitioned_replica_goes_on_without_affecting_others() {
    let redis = RedisServer::start().await;
    let mut replicas = Replicas::start(2, &redis.store_config_line()).await;
    let relay = CuttableRelay::start(redis.address()).await;
    let store = format!("store = {{ redis = \"redis://{}\", key = \"{STORE_KEY}\" }}", relay.address);
    let isolated = TestProxy::start_with_upstream(
        replicas.first.wecom.api_addr(),
        &format!("{OPEN_CONFIG}\n[tokens]\n{store}\n"),
    )
    .await;
    let isolated = Arc::new(isolated);
    replicas.others.push(isolated.clone());
    replicas.wait_for_store().await;
    replicas.load(20).await;
    assert_eq!(replicas.upstream_counts(), (1, 60));

    relay.is_cut.send_replace(true);
    wait_for("the store outage", async || isolated.app.store_error().is_some()).await;
    assert_eq!(
        replicas.revoke_and_load(20).await,
        2,
        "one for the connected replicas, one for the isolated one"
    );
    for proxy in [&replicas.first, &replicas.others[0]] {
        assert_eq!(proxy.app.store_error(), None);
    }
    // WeCom returns the valid token to every gettoken, so the isolated replica has the same token as the others.
    isolated.get(USER_GET).await.assert_ok();

    relay.is_cut.send_replace(false);
    replicas.wait_for_store().await;
    replicas.assert_one_refresh(20).await;
}

/// Runs `network_partition_scenario_in_namespace` in a process with its own network namespace, which ends with the process.
/// That needs root, or user namespaces.
#[tokio::test]
async fn network_partition_in_namespaces_is_survived() {
    let wrappers: [&[&str]; 3] = [
        &["unshare", "--net"],
        &["unshare", "--user", "--map-root-user", "--net"],
        &["sudo", "--non-interactive", "unshare", "--net"],
    ];
    let is_usable = |wrapper: &&&[&str]| {
        let result =
            Command::new(wrapper[0]).args(&wrapper[1..]).args(["ip", "link", "set", "lo", "up"]).output();
        result.is_ok_and(|result| result.status.success())
    };
    let wrapper = wrappers.iter().find(is_usable).unwrap_or_else(|| {
        panic!(
            "no network namespace can be made here: {wrappers:?} all fail. This test needs root, sudo without a password, or \
             user namespaces (sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0), \
             and the command ip, which `sh tests/run.sh` installs"
        )
    });
    let mut command = Command::new(wrapper[0]);
    command.args(&wrapper[1..]).arg(std::env::current_exe().expect("this program"));
    command.args([
        "--exact",
        "replicas::network_partitions::network_partition_scenario_in_namespace",
        "--ignored",
        "--nocapture",
    ]);
    let output = run(command).await;
    assert!(output.status == 0 && output.out.contains("1 passed"), "{}{}", output.out, output.err);
    eprint!("{}", output.err);
}

/// Runs the command `ip`, which needs CAP_NET_ADMIN in the namespace.
fn run_ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("the command ip");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A replica in its own network namespace, with one veth pair to WeCom and one to the store.
struct NamespacedReplica {
    process: Process,
    address: SocketAddr,
    /// The test's end of the veth pair to the store.
    store_interface: String,
    /// Keeps the network namespace alive.
    _network: Process,
    _dir: TempDir,
}

impl NamespacedReplica {
    async fn start(nth: usize, wecom: &Simulator, redis: &RedisServer) -> Self {
        let mut namespace = Command::new("unshare");
        // Prints when the namespace exists; ends by itself after 300 s.
        namespace.args(["--net", "sh", "-c", "echo created; exec sleep 300"]);
        let namespace = Process::start(namespace);
        namespace.out.wait_for_line("created").await;
        let pid = namespace.id();
        for (interface, subnet) in [("w", 1), ("s", 2)] {
            run_ip(&format!("link add {interface}{nth} type veth peer name {interface} netns {pid}"));
            run_ip(&format!("addr add 10.{subnet}.{nth}.1/24 dev {interface}{nth}"));
            run_ip(&format!("link set {interface}{nth} up"));
            let mut inside = Command::new("nsenter");
            inside.args(["-t", &pid.to_string(), "-n", "sh", "-c"]);
            inside.arg(format!(
                "ip addr add 10.{subnet}.{nth}.2/24 dev {interface} && ip link set {interface} up"
            ));
            let output = run(inside).await;
            assert_eq!(output.status, 0, "{}", output.err);
        }
        let store = format!("redis://10.2.{nth}.1:{}", redis.address().port());
        let toml = format!(
            "[server]\nlisten = \"10.1.{nth}.2:0\"\nopen = true\n[upstream]\nurl = \"http://{{api}}\"\n{{agents}}\n\
             [tokens]\nstore = {{ redis = \"{store}\", key = \"{STORE_KEY}\" }}\n"
        );
        let dir = TempDir::new().expect("a temporary directory");
        let wecom = SocketAddr::new([10, 1, nth as u8, 1].into(), wecom.api_addr().port());
        let config = write_config(&dir, wecom, &Settings::default(), &toml);
        let mut proxy = Command::new("nsenter");
        proxy.args(["-t", &pid.to_string(), "-n", env!("CARGO_BIN_EXE_wecom-proxy"), "serve", "--config"]);
        let process = Process::start({
            proxy.arg(config).env_remove("RUST_LOG");
            proxy
        });
        let address = process.address().await;
        process.err.wait_for_line("redis connected").await;
        Self { process, address, store_interface: format!("s{nth}"), _network: namespace, _dir: dir }
    }

    /// Drops all packets between the replica and the store from now on.
    fn cut(&self) {
        run_ip(&format!("link set {} down", self.store_interface));
    }

    fn restore(&self) {
        run_ip(&format!("link set {} up", self.store_interface));
    }

    async fn get(&self) -> TestResponse {
        TestClient::connect_http1(self.address).await.get(USER_GET).await
    }
}

#[tokio::test]
#[ignore = "run by network_partition_in_namespaces_is_survived in its own network namespace"]
async fn network_partition_scenario_in_namespace() {
    run_ip("link set lo up");
    tool("redis-server");
    let any = "0.0.0.0:0".parse().expect("an address");
    let wecom = Simulator::start(Settings::default(), any, "127.0.0.1:0".parse().expect("an address"));
    let wecom = wecom.await.expect("a simulator");
    let redis = RedisServer::start_with(&["--bind", "0.0.0.0", "--protected-mode", "no"]).await;
    let mut replicas = Vec::new();
    for nth in 1..=3 {
        replicas.push(NamespacedReplica::start(nth, &wecom, &redis).await);
    }
    get_at_all(&replicas).await;
    assert_eq!(upstream_counts(&wecom), (1, 3), "all replicas share the token");
    assert_partition_affects_one_replica(&wecom, &replicas).await;
    assert_partition_in_gettoken_delays_within_the_lease(&wecom, &redis, &replicas).await;
}

async fn get_at_all(replicas: &[NamespacedReplica]) {
    for replica in replicas {
        replica.get().await.assert_ok();
    }
}

/// Cuts the first replica off without a TCP close, and reconnects it.
async fn assert_partition_affects_one_replica(wecom: &Simulator, replicas: &[NamespacedReplica]) {
    let isolated = &replicas[0];
    isolated.cut();
    wecom.revoke_tokens("hr").expect("an agent");
    let started = Instant::now();
    isolated.get().await.assert_ok();
    let waited = started.elapsed();
    assert!(waited < Duration::from_secs(3), "the outage is detected after {waited:?}");
    get_at_all(replicas).await;
    assert_eq!(
        upstream_counts(wecom),
        (3, 7),
        "one gettoken for the connected replicas, one for the isolated one"
    );
    isolated.process.err.wait_for_line("redis unavailable").await;
    for replica in &replicas[1..] {
        assert!(
            !replica.process.err.text().contains("redis unavailable"),
            "the other replicas are not affected"
        );
    }
    isolated.restore();
    isolated.process.err.wait_for_nth_line("redis connected", 1).await;
    wecom.revoke_tokens("hr").expect("an agent");
    get_at_all(replicas).await;
    assert_eq!(upstream_counts(wecom), (4, 10), "all replicas share the token again");
}

/// Cuts the first replica off while it holds the lease, in the middle of its gettoken.
async fn assert_partition_in_gettoken_delays_within_the_lease(
    wecom: &Simulator,
    redis: &RedisServer,
    replicas: &[NamespacedReplica],
) {
    let [isolated, other, _] = replicas else { unreachable!("there are three replicas") };
    wecom.inject(Fault::hold().on_path(GETTOKEN).times(1)).expect("a fault");
    wecom.revoke_tokens("hr").expect("an agent");
    let address = isolated.address;
    let pending = tokio::spawn(async move { TestClient::connect_http1(address).await.get(USER_GET).await });
    with_timeout(wecom.wait_until(|observed| observed.received_count(GETTOKEN) == 5))
        .await
        .expect("gettoken");
    isolated.cut();
    let started = Instant::now();
    other.get().await.assert_ok();
    let waited = started.elapsed();
    assert!(waited < Duration::from_secs(6), "the next replica had a token after {waited:?}");
    let fence = async || redis.command(&["--raw", "EVAL", FENCE_SCRIPT, "0"]).await;
    let newer = fence().await;
    wecom.release_held();
    with_timeout(pending).await.expect("no panic").assert_ok();
    isolated.restore();
    isolated.process.err.wait_for_nth_line("redis connected", 2).await;
    get_at_all(replicas).await;
    assert_eq!(
        (upstream_counts(wecom), fence().await),
        ((6, 15), newer),
        "the older token does not overwrite the newer record"
    );
    eprintln!("cut off in the middle of its gettoken: the next replica had a token after {waited:?}");
}

/// The fence of the only record.
pub(super) const FENCE_SCRIPT: &str = "return redis.call('HGET', redis.call('KEYS', '*:record')[1], 'fence')";
