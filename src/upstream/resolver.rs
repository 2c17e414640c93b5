//! Name look-ups for the whole process: one per name at a time, cached, with the last good result in reserve.
//!
//! Names are resolved by the system (`getaddrinfo`), so /etc/hosts, search domains and nsswitch apply. getaddrinfo
//! returns no TTL, so results are cached for [`CACHE_TTL`].

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    sync::LazyLock,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use crate::blocking::ThreadPool;

/// How long a result serves without another look-up.
const CACHE_TTL: Duration = Duration::from_secs(30);
/// How long a failure serves without another look-up.
const FAILURE_TTL: Duration = Duration::from_secs(1);
/// How long the last good result serves while look-ups fail.
const MAX_STALE_AGE: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a caller waits for a look-up if there is an older result to use instead.
const STALE_WAIT_TIMEOUT: Duration = Duration::from_millis(500);
/// A look-up may hang for long; one name must not block the others.
const MAX_LOOKUP_THREADS: usize = 8;

static LOOKUP_THREADS: ThreadPool = ThreadPool::new("resolver", MAX_LOOKUP_THREADS);

/// The resolver of the process.
pub(super) static RESOLVER: LazyLock<Resolver> = LazyLock::new(|| {
    let system_lookup = |host: &str| (host, 0).to_socket_addrs().map(Iterator::collect);
    Resolver::new(Box::new(system_lookup))
});

/// Resolves a host name with the system's call, which blocks.
type LookupFn = Box<dyn Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync>;

/// Why a name has no address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LookupError {
    /// The system's message.
    Failed(String),
    /// No result within the caller's time.
    TimedOut,
}

/// Addresses of a name, with port 0; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Resolved {
    pub(super) addresses: Vec<SocketAddr>,
    /// Whether they were known before this call.
    pub(super) is_cached: bool,
}

/// Shares look-ups and their results between all threads.
pub(super) struct Resolver {
    lookup: LookupFn,
    names: Mutex<HashMap<String, NameState>>,
}

/// What is known of a name.
#[derive(Default)]
struct NameState {
    /// The last good result, the address that last worked first.
    addresses: Vec<SocketAddr>,
    resolved_at: Option<Instant>,
    /// Whether the next caller looks the name up although its result is not old: no address accepts connections.
    expired: bool,
    last_working: Option<IpAddr>,
    failure: Option<(Instant, LookupError)>,
    /// Closed when the look-up in progress has ended.
    in_progress: Option<watch::Receiver<()>>,
    /// Whether an old result serves, so that no caller waits for the look-up.
    serves_stale: bool,
    /// Whether it was logged that an old result serves because look-ups fail.
    is_failure_logged: bool,
}

impl Resolver {
    pub(super) fn new(lookup: LookupFn) -> Self {
        Self { lookup, names: Mutex::default() }
    }

    /// The addresses of a name or an IP address. While the look-up fails, or takes long, the last good result serves.
    pub(super) async fn resolve(
        &'static self,
        host: &str,
        deadline: Instant,
    ) -> Result<Resolved, LookupError> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(Resolved { addresses: vec![SocketAddr::new(ip, 0)], is_cached: false });
        }
        let (mut lookup_ended, has_stale) = {
            let mut names = self.names.lock();
            let name = names.entry(host.to_owned()).or_default();
            if let Some(result) = name.known_result() {
                return result;
            }
            let lookup_ended = match &name.in_progress {
                Some(lookup_ended) => lookup_ended.clone(),
                None => {
                    let (sender, receiver) = watch::channel(());
                    name.in_progress = Some(receiver.clone());
                    drop(names);
                    self.start_lookup(host.to_owned(), sender);
                    names = self.names.lock();
                    receiver
                }
            };
            let name = names.entry(host.to_owned()).or_default();
            if name.serves_stale {
                return name.stale_result(host);
            }
            (lookup_ended, name.is_stale_usable())
        };
        let wait_until = if has_stale { deadline.min(Instant::now() + STALE_WAIT_TIMEOUT) } else { deadline };
        let is_ended = timeout_at(wait_until, lookup_ended.changed()).await.is_ok();
        let mut names = self.names.lock();
        let name = names.entry(host.to_owned()).or_default();
        match name.failure.is_none() && is_ended {
            true => Ok(Resolved { addresses: name.addresses.clone(), is_cached: false }),
            false => name.stale_result(host),
        }
    }

    /// Notes the address that a connection was made to, so that it is tried first.
    pub(super) fn mark_working(&self, host: &str, ip: IpAddr) {
        if let Some(name) = self.names.lock().get_mut(host)
            && name.last_working.replace(ip) != Some(ip)
        {
            name.move_working_first();
        }
    }

    /// Notes that none of the addresses accepts connections: the next caller looks the name up again.
    pub(super) fn expire(&self, host: &str) {
        if let Some(name) = self.names.lock().get_mut(host) {
            // Many callers may fail at once; one more look-up serves them all.
            name.expired = name.resolved_at.is_none_or(|resolved_at| resolved_at.elapsed() >= FAILURE_TTL);
        }
    }

    fn start_lookup(&'static self, host: String, ended: watch::Sender<()>) {
        let result = Err(io::Error::other("the system grants no thread for the look-up"));
        let mut lookup = Lookup { resolver: self, host, result, _ended: ended };
        let job = move || {
            lookup.result = Err(io::Error::other("the look-up panicked"));
            lookup.result = (self.lookup)(&lookup.host);
        };
        // A job that no thread takes is dropped, which ends its look-up.
        drop(LOOKUP_THREADS.submit(Box::new(job)));
    }

    fn finish_lookup(&self, host: &str, result: io::Result<Vec<SocketAddr>>) {
        let mut names = self.names.lock();
        let name = names.entry(host.to_owned()).or_default();
        name.in_progress = None;
        let failure = match result {
            Ok(addresses) if !addresses.is_empty() => {
                name.addresses = interleave_families(addresses);
                name.move_working_first();
                name.resolved_at = Some(Instant::now());
                name.expired = false;
                name.failure = None;
                name.serves_stale = false;
                if std::mem::take(&mut name.is_failure_logged) {
                    tracing::info!(host, "name resolution works again");
                }
                return;
            }
            Ok(_) => "the name has no address".to_owned(),
            Err(error) => error.to_string(),
        };
        name.failure = Some((Instant::now(), LookupError::Failed(failure)));
    }
}

/// A look-up in progress. When it is dropped, after a panic too, its result is stored and its waiters wake.
struct Lookup {
    resolver: &'static Resolver,
    host: String,
    result: io::Result<Vec<SocketAddr>>,
    _ended: watch::Sender<()>,
}

impl Drop for Lookup {
    fn drop(&mut self) {
        let result = std::mem::replace(&mut self.result, Ok(Vec::new()));
        self.resolver.finish_lookup(&self.host, result);
    }
}

impl NameState {
    /// The result that needs no look-up, if there is one.
    fn known_result(&mut self) -> Option<Result<Resolved, LookupError>> {
        let is_fresh = self.resolved_at.is_some_and(|resolved_at| resolved_at.elapsed() < CACHE_TTL);
        if is_fresh && !self.expired {
            return Some(Ok(self.cached()));
        }
        let (failed_at, error) = self.failure.as_ref()?;
        if failed_at.elapsed() >= FAILURE_TTL {
            return None;
        }
        Some(if self.is_stale_usable() { Ok(self.cached()) } else { Err(error.clone()) })
    }

    fn cached(&self) -> Resolved {
        Resolved { addresses: self.addresses.clone(), is_cached: true }
    }

    fn is_stale_usable(&self) -> bool {
        self.resolved_at.is_some_and(|resolved_at| resolved_at.elapsed() < MAX_STALE_AGE)
    }

    /// The last good result; logs the first failure, but not a look-up that is only slow. Without one, the failure.
    fn stale_result(&mut self, host: &str) -> Result<Resolved, LookupError> {
        let failure = self.failure.as_ref().map_or(LookupError::TimedOut, |(_, error)| error.clone());
        self.serves_stale = self.is_stale_usable();
        if !self.serves_stale {
            return Err(failure);
        }
        if let LookupError::Failed(error) = &failure
            && !std::mem::replace(&mut self.is_failure_logged, true)
        {
            let age_seconds = self.resolved_at.map_or(0, |resolved_at| resolved_at.elapsed().as_secs());
            tracing::warn!(
                host,
                error,
                age_seconds,
                "name resolution failed, using the last known addresses"
            );
        }
        Ok(self.cached())
    }

    fn move_working_first(&mut self) {
        self.addresses.sort_by_key(|address| Some(address.ip()) != self.last_working);
    }
}

/// Alternates between IPv6 and IPv4, so that one broken family delays a connection once (RFC 8305 §4). The system's
/// order stays within each.
fn interleave_families(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_ipv6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (first_family, second_family): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == first_is_ipv6);
    let (mut first_family, mut second_family) = (first_family.into_iter(), second_family.into_iter());
    let mut interleaved: Vec<SocketAddr> = Vec::new();
    loop {
        let next = [first_family.next(), second_family.next()];
        if next == [None, None] {
            return interleaved;
        }
        for address in next.into_iter().flatten() {
            // The system may list an address once per socket type.
            if !interleaved.contains(&address) {
                interleaved.push(address);
            }
        }
    }
}

#[cfg(test)]
mod tests;
