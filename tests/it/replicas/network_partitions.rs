//! One replica loses the way to the store, and the others do not: by a relay that breaks its connections, and by networks
//! in which nothing comes through any more and nothing says so.

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

use super::{GETTOKEN, Replicas, USER};
use crate::{
    harness::{
        OPEN_CONFIG, TestClient, TestProxy, TestResponse, USER_GET, wait_for, with_timeout, write_config,
    },
    process::{Process, run, tool},
    redis_server::{RedisServer, STORE_KEY},
};

/// A way to a server that can be cut: what is connected breaks, and what connects is closed at once.
pub(super) struct CuttableRelay {
    pub(super) address: SocketAddr,
    pub(super) is_cut: watch::Sender<bool>,
}

impl CuttableRelay {
    pub(super) async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (is_cut, cut) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut cut = cut.clone();
                tokio::spawn(async move {
                    let pass = async {
                        let mut far = TcpStream::connect(server).await?;
                        copy_bidirectional(&mut near, &mut far).await
                    };
                    tokio::select! {
                        biased;
                        _ = cut.wait_for(|cut| *cut) => {}
                        _ = pass => {}
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
    let way = CuttableRelay::start(redis.address()).await;
    let store = format!("store = {{ redis = \"redis://{}\", key = \"{STORE_KEY}\" }}", way.address);
    let lonely = TestProxy::start_with_upstream(
        replicas.first.wecom.api_addr(),
        &format!("{OPEN_CONFIG}\n[tokens]\n{store}\n"),
    )
    .await;
    let lonely = Arc::new(lonely);
    replicas.others.push(lonely.clone());
    replicas.wait_for_store().await;
    replicas.load(20).await;
    assert_eq!(replicas.upstream_counts(), (1, 60));

    way.is_cut.send_replace(true);
    wait_for("the loss", async || lonely.app.store_error().is_some()).await;
    assert_eq!(replicas.revoke_and_load(20).await, 2, "one for those who share, one for it alone");
    for stage in [&replicas.first, &replicas.others[0]] {
        assert_eq!(stage.app.store_error(), None);
    }
    // A token that it got for itself is no secret to WeCom: it is the one that the others have.
    lonely.get(USER_GET).await.assert_ok();

    way.is_cut.send_replace(false);
    replicas.wait_for_store().await;
    replicas.assert_one_refresh(20).await;
}

/// The story about networks runs in a process with networks of its own, in which it may do as it likes, and which are gone
/// with it. Root may have those, and on most systems everybody.
#[tokio::test]
async fn network_partition_in_namespaces_is_survived() {
    let ways: [&[&str]; 3] = [
        &["unshare", "--net"],
        &["unshare", "--user", "--map-root-user", "--net"],
        &["sudo", "--non-interactive", "unshare", "--net"],
    ];
    let works = |way: &&&[&str]| {
        let tried = Command::new(way[0]).args(&way[1..]).args(["ip", "link", "set", "lo", "up"]).output();
        tried.is_ok_and(|tried| tried.status.success())
    };
    let way = ways.iter().find(works).unwrap_or_else(|| {
        panic!(
            "no network namespace can be made here: {ways:?} all fail. This story needs root, sudo without a password, or \
             user namespaces (sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0), \
             and the command ip, which `sh tests/run.sh` installs"
        )
    });
    let mut command = Command::new(way[0]);
    command.args(&way[1..]).arg(std::env::current_exe().expect("this program"));
    command.args([
        "--exact",
        "replicas::network_partitions::network_partition_scenario_in_namespace",
        "--ignored",
        "--nocapture",
    ]);
    let ended = run(command).await;
    assert!(ended.status == 0 && ended.out.contains("1 passed"), "{}{}", ended.out, ended.err);
    eprint!("{}", ended.err);
}

/// Sets up networks where it may.
fn run_ip(words: &str) {
    let done = Command::new("ip").args(words.split(' ')).output().expect("the command ip");
    assert!(done.status.success(), "ip {words}: {}", String::from_utf8_lossy(&done.stderr));
}

/// A replica on a network of its own, with a wire to WeCom and one to the store.
struct NamespacedReplica {
    process: Process,
    address: SocketAddr,
    /// The near end of its wire to the store.
    store_interface: String,
    /// Keeps its network.
    _network: Process,
    _dir: TempDir,
}

impl NamespacedReplica {
    async fn start(nth: usize, wecom: &Simulator, redis: &RedisServer) -> Self {
        let mut network = Command::new("unshare");
        // It says when it is there, and ends by itself.
        network.args(["--net", "sh", "-c", "echo there; exec sleep 300"]);
        let network = Process::start(network);
        network.out.wait_for_line("there").await;
        let pid = network.id();
        for (wire, net) in [("w", 1), ("s", 2)] {
            run_ip(&format!("link add {wire}{nth} type veth peer name {wire} netns {pid}"));
            run_ip(&format!("addr add 10.{net}.{nth}.1/24 dev {wire}{nth}"));
            run_ip(&format!("link set {wire}{nth} up"));
            let mut inside = Command::new("nsenter");
            inside.args(["-t", &pid.to_string(), "-n", "sh", "-c"]);
            inside.arg(format!("ip addr add 10.{net}.{nth}.2/24 dev {wire} && ip link set {wire} up"));
            let done = run(inside).await;
            assert_eq!(done.status, 0, "{}", done.err);
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
        Self { process, address, store_interface: format!("s{nth}"), _network: network, _dir: dir }
    }

    /// What it sends to the store from now on is lost, and what the store says to it.
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
#[ignore = "network_partition_in_namespaces_is_survived runs it in network namespaces"]
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
    let seen = || wecom.observe(|seen| (seen.received_count(GETTOKEN), seen.executed_count(USER)));
    let all_ask = async || {
        for replica in &replicas {
            replica.get().await.assert_ok();
        }
    };
    all_ask().await;
    assert_eq!(seen(), (1, 3), "all is well");

    // Nobody has told the first that its way to the store is gone.
    let [lonely, other, _] = &replicas[..] else { unreachable!("they are three") };
    lonely.cut();
    wecom.revoke_tokens("hr").expect("an agent");
    let began = Instant::now();
    lonely.get().await.assert_ok();
    let waited = began.elapsed();
    assert!(waited < Duration::from_secs(3), "it found out after {waited:?}");
    all_ask().await;
    assert_eq!(seen(), (3, 7), "one gettoken for those who share, one for it alone");
    lonely.process.err.wait_for_line("redis unavailable").await;
    for replica in &replicas[1..] {
        assert!(!replica.process.err.text().contains("away"), "the others do not notice");
    }
    lonely.restore();
    lonely.process.err.wait_for_nth_line("redis connected", 1).await;
    wecom.revoke_tokens("hr").expect("an agent");
    all_ask().await;
    assert_eq!(seen(), (4, 10), "together again");

    // It is cut off in the middle of the gettoken that it makes for all.
    wecom.inject(Fault::hold().on_path(GETTOKEN).times(1)).expect("a fault");
    wecom.revoke_tokens("hr").expect("an agent");
    let address = lonely.address;
    let asking = tokio::spawn(async move { TestClient::connect_http1(address).await.get(USER_GET).await });
    with_timeout(wecom.wait_until(|seen| seen.received_count(GETTOKEN) == 5)).await.expect("gettoken");
    lonely.cut();
    let began = Instant::now();
    other.get().await.assert_ok();
    let waited = began.elapsed();
    assert!(waited < Duration::from_secs(6), "the next one had a token after {waited:?}");
    let fence = async || redis.command(&["--raw", "EVAL", FENCE_SCRIPT, "0"]).await;
    let newer = fence().await;
    wecom.release_held();
    with_timeout(asking).await.expect("no panic").assert_ok();
    lonely.restore();
    lonely.process.err.wait_for_nth_line("redis connected", 2).await;
    all_ask().await;
    assert_eq!(
        (seen(), fence().await),
        ((6, 15), newer),
        "what it was given before puts nothing over what is newer"
    );
    eprintln!("cut off in the middle of its gettoken: the next one had a token after {waited:?}");
}

/// The fence of the only record.
pub(super) const FENCE_SCRIPT: &str = "return redis.call('HGET', redis.call('KEYS', '*:record')[1], 'fence')";
