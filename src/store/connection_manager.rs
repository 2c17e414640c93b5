//! The connection to the store: made, watched and made anew in the background. Whoever wants something of the store learns
//! at once whether it is there.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use redis::{RedisError, RedisResult, Script};
use tokio::{
    runtime::Handle,
    sync::{Notify, mpsc},
    time::{Instant, sleep, timeout},
};

use super::{
    channel_name,
    dialer::{CONNECT_TIMEOUT, Dialer, RESPONSE_TIMEOUT, StoreConnection},
    notification::StoreEvent,
    store_key,
};

/// Why there is no connection before the first attempt has ended.
const NOT_CONNECTED_YET: &str = "not connected yet";
/// How often a connection is looked at.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);
/// Shortest and longest pause between two attempts to connect.
const RECONNECT_BACKOFF_RANGE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// A store that was there for less than this, and not for the first time, is connected to no faster than one that is away.
const MIN_STABLE_INTERVAL: Duration = Duration::from_secs(10);
/// How long what a trial leaves behind is kept.
const PROBE_KEY_TTL: Duration = Duration::from_secs(10);

/// The way to the store.
pub(super) struct ConnectionManager {
    dialer: Dialer,
    channel: String,
    /// Keys for trials, of the two kinds that there are.
    probe_keys: [String; 2],
    probe_script: Script,
    connection: ArcSwapOption<StoreConnection>,
    /// Why it is away; `None` while it is there.
    last_error: Mutex<Option<String>>,
    probe_requested: Notify,
    event_sender: mpsc::UnboundedSender<StoreEvent>,
}

impl ConnectionManager {
    /// A link that begins to connect on `runtime`. It says to `says` when it is connected.
    pub(super) fn open(
        dialler: Dialer,
        prefix: &str,
        runtime: &Handle,
        says: mpsc::UnboundedSender<StoreEvent>,
    ) -> Arc<Self> {
        let link = Arc::new(Self {
            dialer: dialler,
            channel: channel_name(prefix),
            probe_keys: ["hash", "text"].map(|kind| store_key(prefix, "probe", kind)),
            probe_script: Script::new(include_str!("scripts/trial.lua")),
            connection: ArcSwapOption::empty(),
            last_error: Mutex::new(Some(NOT_CONNECTED_YET.to_owned())),
            probe_requested: Notify::new(),
            event_sender: says,
        });
        runtime.spawn(maintain_connection(Arc::downgrade(&link)));
        link
    }

    /// The connection, if the store is there.
    pub(super) fn connection(&self) -> Option<StoreConnection> {
        self.connection.load().as_deref().cloned()
    }

    /// Why the store is away; `None` while it is there.
    pub(super) fn last_error(&self) -> Option<String> {
        self.lock_last_error().clone()
    }

    /// Whether the first attempt to connect has ended.
    pub(super) fn was_attempted(&self) -> bool {
        self.lock_last_error().as_deref() != Some(NOT_CONNECTED_YET)
    }

    /// Notes that the store did not do what it was asked to.
    pub(super) fn on_call_failed(&self, error: &RedisError) {
        self.mark_unavailable(error.to_string());
        self.request_probe();
    }

    /// Has the connection looked at now.
    pub(super) fn request_probe(&self) {
        self.probe_requested.notify_one();
    }

    fn mark_unavailable(&self, why: String) {
        self.connection.store(None);
        let before = self.lock_last_error().replace(why.clone());
        if before.is_none_or(|before| before == NOT_CONNECTED_YET) {
            tracing::warn!(why, "the store is away; this replica goes on by itself from memory");
        }
    }

    fn lock_last_error(&self) -> MutexGuard<'_, Option<String>> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects, subscribes, and tries whether the store does what it will be asked for.
    async fn connect(&self) -> RedisResult<()> {
        let mut connection = self.dialer.connect().await?;
        connection.subscribe(&self.channel).await?;
        let mut trial = self.probe_script.key(&self.probe_keys[0]);
        trial.key(&self.probe_keys[1]).arg(&self.channel).arg(PROBE_KEY_TTL.as_millis() as u64);
        trial.invoke_async::<()>(&mut connection).await?;
        self.connection.store(Some(Arc::new(connection)));
        if self.lock_last_error().take().is_some() {
            tracing::info!("the store is there; tokens are shared with the other replicas");
            let _ = self.event_sender.send(StoreEvent::Connected);
        }
        Ok(())
    }

    /// A store that is full, or has become a replica, answers but takes nothing. And of a cluster, the one server may have
    /// gone through which news came; nothing else asks that one for anything.
    async fn probe(&self, connection: &mut StoreConnection, doubted: bool) -> RedisResult<()> {
        if doubted {
            timeout(RESPONSE_TIMEOUT, connection.subscribe(&self.channel))
                .await
                .unwrap_or_else(|_| Err(timeout_error()))?;
        }
        let mut probe = redis::cmd("SET");
        probe.arg(&self.probe_keys[1]).arg(1).arg("PX").arg(PROBE_KEY_TTL.as_millis() as u64);
        match timeout(RESPONSE_TIMEOUT, probe.exec_async(connection)).await {
            Ok(looked) => looked,
            Err(_) => Err(timeout_error()),
        }
    }
}

pub(super) fn timeout_error() -> RedisError {
    RedisError::from(std::io::Error::new(std::io::ErrorKind::TimedOut, "it does not answer in time"))
}

/// Keeps the link connected as long as there is one.
async fn maintain_connection(link: Weak<ConnectionManager>) {
    let (mut pause, mut joined) = (RECONNECT_BACKOFF_RANGE.0, None::<Instant>);
    loop {
        let Some(link) = link.upgrade() else { return };
        match link.connection() {
            None => {
                match joined.take() {
                    Some(joined) if joined.elapsed() < MIN_STABLE_INTERVAL => {
                        sleep(pause).await;
                        pause = (2 * pause).min(RECONNECT_BACKOFF_RANGE.1);
                    }
                    Some(_) => pause = RECONNECT_BACKOFF_RANGE.0,
                    None => {}
                }
                match timeout(2 * CONNECT_TIMEOUT, link.connect())
                    .await
                    .unwrap_or_else(|_| Err(timeout_error()))
                {
                    Ok(()) => joined = Some(Instant::now()),
                    Err(error) => {
                        link.mark_unavailable(error.to_string());
                        sleep(pause).await;
                        pause = (2 * pause).min(RECONNECT_BACKOFF_RANGE.1);
                    }
                }
            }
            Some(mut connection) => {
                let doubted = timeout(PROBE_INTERVAL, link.probe_requested.notified()).await.is_ok();
                if link.connection().is_some()
                    && let Err(error) = link.probe(&mut connection, doubted).await
                {
                    link.mark_unavailable(error.to_string());
                }
            }
        }
    }
}
