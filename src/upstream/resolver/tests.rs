//! Look-ups with a scripted system resolver.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
    mpsc,
};

use super::*;

const HOST: &str = "up.test";

/// A resolver whose look-ups wait for the test's results.
struct Scripted {
    resolver: &'static Resolver,
    results: mpsc::Sender<io::Result<Vec<SocketAddr>>>,
    lookups: Arc<AtomicUsize>,
}

impl Scripted {
    fn new() -> Self {
        let (results, next_result) = mpsc::channel();
        let (next_result, lookups) = (Mutex::new(next_result), Arc::new(AtomicUsize::new(0)));
        let counter = lookups.clone();
        let lookup = move |_: &str| {
            counter.fetch_add(1, Ordering::SeqCst);
            let next_result = next_result.lock();
            next_result.recv().unwrap_or_else(|_| Err(io::Error::other("the test has ended")))
        };
        let resolver = Box::leak(Box::new(Resolver::new(Box::new(lookup))));
        Self { resolver, results, lookups }
    }

    fn queue(&self, result: Result<&[&str], &str>) {
        let addresses = |ips: &[&str]| ips.iter().map(|ip| address(ip)).collect();
        self.results.send(result.map(addresses).map_err(io::Error::other)).expect("the look-up waits");
    }

    async fn resolve(&self, timeout: Duration) -> Result<Vec<SocketAddr>, LookupError> {
        let resolved = self.resolver.resolve(HOST, Instant::now() + timeout).await;
        resolved.map(|resolved| resolved.addresses)
    }

    async fn resolve_first(&self) -> Result<SocketAddr, LookupError> {
        self.resolve(Duration::from_secs(20)).await.map(|addresses| addresses[0])
    }

    fn lookup_count(&self) -> usize {
        self.lookups.load(Ordering::SeqCst)
    }

    /// Makes the last result, or the last failure, this much older.
    fn age(&self, by: Duration) {
        let mut names = self.resolver.names.lock();
        let name = names.get_mut(HOST).expect("a name");
        name.resolved_at = name.resolved_at.map(|at| at - by);
        name.failure = name.failure.take().map(|(at, error)| (at - by, error));
    }
}

fn address(ip: &str) -> SocketAddr {
    SocketAddr::new(ip.parse().expect("an IP address"), 0)
}

#[tokio::test]
async fn concurrent_callers_share_one_lookup_and_its_failure() {
    let scripted = Scripted::new();
    let resolver = scripted.resolver;
    let calls: Vec<_> = (0..300)
        .map(|_| {
            tokio::spawn(async { resolver.resolve(HOST, Instant::now() + Duration::from_secs(20)).await })
        })
        .collect();
    tokio::task::yield_now().await;
    scripted.queue(Err("SERVFAIL"));
    let failure = LookupError::Failed("SERVFAIL".to_owned());
    for call in calls {
        assert_eq!(call.await.expect("no panic"), Err(failure.clone()));
    }
    assert_eq!(scripted.resolve_first().await, Err(failure), "remembered");
    assert_eq!(scripted.lookup_count(), 1);
    scripted.age(FAILURE_TTL);
    scripted.queue(Ok(&["10.0.0.1"]));
    assert_eq!(scripted.resolve_first().await, Ok(address("10.0.0.1")));
    assert_eq!(scripted.lookup_count(), 2);
}

#[tokio::test]
async fn silent_lookup_times_out_and_stays_the_only_one() {
    let scripted = Scripted::new();
    for _ in 0..3 {
        assert_eq!(scripted.resolve(Duration::from_millis(20)).await, Err(LookupError::TimedOut));
    }
    assert_eq!(scripted.lookup_count(), 1);
    scripted.queue(Ok(&["10.0.0.1"]));
    assert_eq!(scripted.resolve_first().await, Ok(address("10.0.0.1")));
    assert_eq!(scripted.lookup_count(), 1);
}

#[tokio::test]
async fn last_good_result_serves_while_lookups_fail_or_hang() {
    let scripted = Scripted::new();
    scripted.queue(Ok(&["10.0.0.1"]));
    scripted.resolve_first().await.expect("an address");
    scripted.age(CACHE_TTL);
    scripted.queue(Err("SERVFAIL"));
    assert_eq!(scripted.resolve_first().await, Ok(address("10.0.0.1")));
    scripted.age(FAILURE_TTL);
    // This look-up hangs; after the first caller, none waits for it.
    let start = Instant::now();
    for _ in 0..10 {
        assert_eq!(scripted.resolve_first().await, Ok(address("10.0.0.1")));
    }
    assert!(start.elapsed() < Duration::from_secs(2 * STALE_WAIT_TIMEOUT.as_secs() + 2));
    assert!(scripted.lookup_count() <= 3);
    scripted.queue(Ok(&["10.0.0.2"]));
    while scripted.resolve_first().await != Ok(address("10.0.0.2")) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(scripted.lookup_count(), 3);
}

#[tokio::test]
async fn slow_lookup_is_not_logged_as_a_failure() {
    let scripted = Scripted::new();
    let is_failure_logged = || scripted.resolver.names.lock()[HOST].is_failure_logged;
    scripted.queue(Ok(&["10.0.0.1"]));
    scripted.resolve_first().await.expect("an address");
    scripted.age(CACHE_TTL);
    assert_eq!(scripted.resolve_first().await, Ok(address("10.0.0.1")), "it takes long");
    assert!(!is_failure_logged());
    scripted.queue(Ok(&["10.0.0.2"]));
    while scripted.resolve_first().await != Ok(address("10.0.0.2")) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    scripted.age(CACHE_TTL);
    scripted.queue(Err("SERVFAIL"));
    assert_eq!(scripted.resolve_first().await, Ok(address("10.0.0.2")));
    assert!(is_failure_logged());
    scripted.age(FAILURE_TTL);
    scripted.queue(Ok(&["10.0.0.3"]));
    while scripted.resolve_first().await != Ok(address("10.0.0.3")) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!is_failure_logged());
}

#[tokio::test]
async fn panicking_lookup_is_a_failure_and_not_the_last() {
    let lookups = AtomicUsize::new(0);
    let lookup = move |_: &str| match lookups.fetch_add(1, Ordering::SeqCst) {
        0 => panic!("expected"),
        _ => Ok(vec![address("10.0.0.1")]),
    };
    let resolver: &'static Resolver = Box::leak(Box::new(Resolver::new(Box::new(lookup))));
    let deadline = Instant::now() + Duration::from_secs(20);
    let failure = LookupError::Failed("the look-up panicked".to_owned());
    assert_eq!(resolver.resolve(HOST, deadline).await, Err(failure));
    resolver.names.lock().get_mut(HOST).expect("a name").failure = None;
    let resolved = resolver.resolve(HOST, deadline).await.expect("an address");
    assert_eq!(resolved.addresses, [address("10.0.0.1")]);
}

#[tokio::test]
async fn result_older_than_a_day_does_not_serve() {
    let scripted = Scripted::new();
    scripted.queue(Ok(&["10.0.0.1"]));
    scripted.resolve_first().await.expect("an address");
    scripted.age(MAX_STALE_AGE);
    scripted.queue(Err("SERVFAIL"));
    assert_eq!(scripted.resolve_first().await, Err(LookupError::Failed("SERVFAIL".to_owned())));
}

#[tokio::test]
async fn working_address_comes_first_after_the_next_lookup_too() {
    let scripted = Scripted::new();
    scripted.queue(Ok(&["10.0.0.1", "10.0.0.2"]));
    assert_eq!(scripted.resolve_first().await, Ok(address("10.0.0.1")));
    scripted.resolver.mark_working(HOST, address("10.0.0.2").ip());
    assert_eq!(scripted.resolve_first().await, Ok(address("10.0.0.2")));
    scripted.age(CACHE_TTL);
    scripted.queue(Ok(&["10.0.0.1", "10.0.0.2"]));
    assert_eq!(scripted.resolve_first().await, Ok(address("10.0.0.2")));
    assert_eq!(scripted.lookup_count(), 2);
}

#[tokio::test]
async fn expired_result_is_looked_up_again_at_most_once_a_second() {
    let scripted = Scripted::new();
    scripted.queue(Ok(&["10.0.0.1"]));
    scripted.resolve_first().await.expect("an address");
    scripted.resolver.expire(HOST);
    assert_eq!(scripted.resolve_first().await, Ok(address("10.0.0.1")), "it is new");
    scripted.age(FAILURE_TTL);
    scripted.resolver.expire(HOST);
    scripted.queue(Ok(&["10.0.0.2"]));
    assert_eq!(scripted.resolve_first().await, Ok(address("10.0.0.2")));
}

#[test]
fn families_alternate_and_duplicates_go() {
    let addresses = ["::1", "::2", "::3", "10.0.0.1", "10.0.0.2", "::1"].map(address).to_vec();
    let expected = ["::1", "10.0.0.1", "::2", "10.0.0.2", "::3"].map(address).to_vec();
    assert_eq!(interleave_families(addresses), expected);
    assert_eq!(interleave_families(Vec::new()), []);
}
