//! Connects to the store, probes the connection and reconnects, all in the background. Callers learn at once
//! whether the store is connected.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use redis::{RedisError, RedisResult, Script, Value};
use tokio::{
    runtime::Handle,
    sync::{Notify, mpsc},
    time::{Instant, sleep, timeout},
};

use super::{
    StoreError, Unavailable,
    backend::{Backend, DialerChange, MakeDialer, Reply},
    dialer::{CONNECT_TIMEOUT, Dialer, RESPONSE_TIMEOUT, StoreConnection},
    keys::{channel_name, store_key},
    notification::StoreEvent,
    script::{SCRIPT_COUNT, SCRIPT_TEXTS, ScriptCall},
};
use crate::{secret::random_fraction, time::backoff::BackoffRange};

/// The reason before the first attempt has ended.
const NOT_CONNECTED_YET: &str = "not connected yet";
/// Longer than one response may take, because a call can need several: a cluster redirects it, or the server has
/// lost the script and needs its text.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// Time between two probes of a connection.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);
/// The waits between two connection attempts.
const RECONNECT_BACKOFF_RANGE: BackoffRange =
    BackoffRange { min: Duration::from_millis(100), max: Duration::from_secs(2) };
/// A connection that lived shorter than this does not reset the reconnect backoff.
const MIN_STABLE_INTERVAL: Duration = Duration::from_secs(10);
/// TTL of the keys that a probe writes.
const PROBE_KEY_TTL: Duration = Duration::from_secs(10);

/// Holds the current connection, or the reason why there is none.
pub(super) struct ConnectionManager {
    dialer: ArcSwap<Dialer>,
    channel: String,
    /// Probe keys: a hash and a string.
    probe_keys: [String; 2],
    probe_script: Script,
    /// In the order of [`super::script::Script`].
    scripts: [Script; SCRIPT_COUNT],
    connection: ArcSwapOption<StoreConnection>,
    /// Why the store is unavailable; `None` while it is connected.
    last_error: Mutex<Option<String>>,
    probe_requested: Notify,
    event_sender: mpsc::UnboundedSender<StoreEvent>,
}

impl ConnectionManager {
    /// Starts connecting on `runtime`. Each time a connection is established, [`StoreEvent::Connected`] is sent
    /// to `event_sender`.
    pub(super) fn open(
        dialer: Dialer,
        prefix: &str,
        runtime: &Handle,
        event_sender: mpsc::UnboundedSender<StoreEvent>,
    ) -> Arc<Self> {
        let manager = Arc::new(Self {
            dialer: ArcSwap::from_pointee(dialer),
            channel: channel_name(prefix),
            probe_keys: ["hash", "text"].map(|kind| store_key(prefix, "probe", kind)),
            probe_script: Script::new(include_str!("scripts/probe.lua")),
            scripts: SCRIPT_TEXTS.map(Script::new),
            connection: ArcSwapOption::empty(),
            last_error: Mutex::new(Some(NOT_CONNECTED_YET.to_owned())),
            probe_requested: Notify::new(),
            event_sender,
        });
        runtime.spawn(maintain_connection(Arc::downgrade(&manager)));
        manager
    }

    /// The current connection, if there is one.
    fn connection(&self) -> Option<StoreConnection> {
        self.connection.load().as_deref().cloned()
    }

    /// Marks the store unavailable if a call fails, and probes it.
    async fn with_call_timeout<T>(
        &self,
        response: impl Future<Output = RedisResult<T>>,
    ) -> Result<T, Unavailable> {
        timeout(CALL_TIMEOUT, response).await.unwrap_or_else(|_| Err(timeout_error())).map_err(|error| {
            self.mark_unavailable(error.to_string());
            self.request_probe();
            Unavailable
        })
    }

    fn mark_unavailable(&self, reason: String) {
        self.connection.store(None);
        let before = self.last_error.lock().replace(reason.clone());
        if before.is_none_or(|before| before == NOT_CONNECTED_YET) {
            tracing::warn!(why = reason, "redis unavailable, serving tokens from memory");
        }
    }

    /// Connects, subscribes, and runs the commands of all scripts once, so that a missing permission shows now.
    async fn connect(&self) -> RedisResult<()> {
        let mut connection = self.dialer.load_full().connect().await?;
        connection.subscribe(&self.channel).await?;
        let mut probe = self.probe_script.key(&self.probe_keys[0]);
        probe.key(&self.probe_keys[1]).arg(&self.channel).arg(PROBE_KEY_TTL.as_millis() as u64);
        probe.invoke_async::<()>(&mut connection).await?;
        self.connection.store(Some(Arc::new(connection)));
        if self.last_error.lock().take().is_some() {
            tracing::info!("redis connected, sharing tokens with other replicas");
            let _ = self.event_sender.send(StoreEvent::Connected);
        }
        Ok(())
    }

    /// Writes a key, because a server that is full or became a replica still serves reads. After a hint that
    /// the connection broke, subscribes again: the lost connection may be that of the one cluster node that
    /// delivered notifications, which no other call uses.
    async fn probe(&self, connection: &mut StoreConnection, resubscribe: bool) -> RedisResult<()> {
        if resubscribe {
            timeout(RESPONSE_TIMEOUT, connection.subscribe(&self.channel))
                .await
                .unwrap_or_else(|_| Err(timeout_error()))?;
        }
        let mut probe = redis::cmd("SET");
        probe.arg(&self.probe_keys[1]).arg(1).arg("PX").arg(PROBE_KEY_TTL.as_millis() as u64);
        timeout(RESPONSE_TIMEOUT, probe.exec_async(connection)).await.unwrap_or_else(|_| Err(timeout_error()))
    }
}

impl Backend for ConnectionManager {
    fn call(&self, script_call: ScriptCall) -> Reply<'_, Value> {
        Box::pin(async move {
            let mut connection = self.connection().ok_or(Unavailable)?;
            let mut call = self.scripts[script_call.script as usize].prepare_invoke();
            for key in script_call.keys {
                call.key(key);
            }
            for argument in script_call.arguments {
                call.arg(argument);
            }
            self.with_call_timeout(call.invoke_async(&mut connection)).await
        })
    }

    fn publish(&self, channel: String, message: String) -> Reply<'_, ()> {
        Box::pin(async move {
            let mut connection = self.connection().ok_or(Unavailable)?;
            let mut publish = redis::cmd("PUBLISH");
            publish.arg(channel).arg(message);
            self.with_call_timeout(publish.exec_async(&mut connection)).await
        })
    }

    fn last_error(&self) -> Option<String> {
        self.last_error.lock().clone()
    }

    fn was_attempted(&self) -> bool {
        self.last_error.lock().as_deref() != Some(NOT_CONNECTED_YET)
    }

    fn request_probe(&self) {
        self.probe_requested.notify_one();
    }

    fn prepare_dialer(&self, make: MakeDialer<'_>) -> Result<DialerChange<'_>, StoreError> {
        let dialer = make(self.event_sender.clone())?;
        Ok(Box::new(move || {
            let has_changed = !self.dialer.load().has_same_ca(&dialer);
            if has_changed {
                self.dialer.store(Arc::new(dialer));
            }
            has_changed
        }))
    }
}

fn timeout_error() -> RedisError {
    RedisError::from(std::io::Error::new(std::io::ErrorKind::TimedOut, "response timed out"))
}

/// Reconnects and probes until the manager is dropped.
async fn maintain_connection(manager: Weak<ConnectionManager>) {
    let (mut failures, mut connected_at) = (0_u32, None::<Instant>);
    let back_off = async |failures: &mut u32| {
        sleep(RECONNECT_BACKOFF_RANGE.jittered(*failures, random_fraction())).await;
        *failures = failures.saturating_add(1);
    };
    loop {
        let Some(manager) = manager.upgrade() else { return };
        match manager.connection() {
            None => {
                match connected_at.take() {
                    Some(connected_at) if connected_at.elapsed() < MIN_STABLE_INTERVAL => {
                        back_off(&mut failures).await;
                    }
                    Some(_) => failures = 0,
                    None => {}
                }
                match timeout(2 * CONNECT_TIMEOUT, manager.connect())
                    .await
                    .unwrap_or_else(|_| Err(timeout_error()))
                {
                    Ok(()) => connected_at = Some(Instant::now()),
                    Err(error) => {
                        manager.mark_unavailable(error.to_string());
                        back_off(&mut failures).await;
                    }
                }
            }
            Some(mut connection) => {
                let resubscribe = timeout(PROBE_INTERVAL, manager.probe_requested.notified()).await.is_ok();
                if manager.connection().is_some()
                    && let Err(error) = manager.probe(&mut connection, resubscribe).await
                {
                    manager.mark_unavailable(error.to_string());
                }
            }
        }
    }
}
