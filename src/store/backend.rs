//! Where the scripts run: Redis, or in tests an in-memory fake.

use std::pin::Pin;

use redis::Value;
use tokio::sync::mpsc;

use super::{StoreError, Unavailable, dialer::Dialer, notification::StoreEvent, script::ScriptCall};

/// The future of a call.
pub(super) type Reply<'a, T> = Pin<Box<dyn Future<Output = Result<T, Unavailable>> + Send + 'a>>;

/// Makes a dialer that reports to the channel.
pub(super) type MakeDialer<'a> = &'a dyn Fn(mpsc::UnboundedSender<StoreEvent>) -> Result<Dialer, StoreError>;

/// Carries out a change of the dialer; returns whether it trusts other certificates.
pub type DialerChange<'a> = Box<dyn FnOnce() -> bool + 'a>;

/// A server that runs the scripts.
pub(super) trait Backend: Send + Sync {
    /// Runs a script.
    fn call(&self, script_call: ScriptCall) -> Reply<'_, Value>;

    /// Sends a message to all subscribers of the channel; no retry.
    fn publish(&self, channel: String, message: String) -> Reply<'_, ()>;

    /// Why the store is unavailable; `None` while it is connected.
    fn last_error(&self) -> Option<String>;

    /// Whether the first connection attempt has ended.
    fn was_attempted(&self) -> bool;

    /// Probes the connection now.
    fn request_probe(&self);

    /// Makes a dialer with `make`, which later connections use once the change is carried out, if it trusts other
    /// certificates.
    fn prepare_dialer(&self, make: MakeDialer<'_>) -> Result<DialerChange<'_>, StoreError>;
}
