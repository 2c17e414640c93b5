//! Where scripts run: in the configured Redis, or in tests in an in-memory fake.

use std::{future::Future, sync::Arc, time::Duration};

use redis::{ErrorKind, FromRedisValue, RedisError, RedisResult};
use tokio::time::timeout;

use super::{
    Unavailable,
    connection_manager::{ConnectionManager, timeout_error},
    script::{SCRIPT_TEXTS, ScriptCall},
};

/// Where the scripts run.
pub(super) enum Backend {
    Redis {
        connections: Arc<ConnectionManager>,
        /// In the order of [`Script`].
        scripts: Box<[redis::Script; 6]>,
    },
    #[cfg(test)]
    Fake(super::fake::FakeConnection),
}

impl Backend {
    pub(super) fn redis(connections: Arc<ConnectionManager>) -> Self {
        Self::Redis { connections, scripts: Box::new(SCRIPT_TEXTS.map(redis::Script::new)) }
    }

    pub(super) async fn call<T: FromRedisValue>(&self, script_call: ScriptCall) -> Result<T, Unavailable> {
        match self {
            Self::Redis { connections, scripts } => {
                let mut connection = connections.connection().ok_or(Unavailable)?;
                let mut call = scripts[script_call.script as usize].prepare_invoke();
                for key in script_call.keys {
                    call.key(key);
                }
                for argument in script_call.arguments {
                    call.arg(argument);
                }
                with_call_timeout(connections, call.invoke_async(&mut connection)).await
            }
            #[cfg(test)]
            Self::Fake(connection) => {
                T::from_redis_value(connection.call(script_call).await?).map_err(|_| Unavailable)
            }
        }
    }

    pub(super) async fn publish(&self, channel: String, message: &str) -> Result<(), Unavailable> {
        match self {
            Self::Redis { connections, .. } => {
                let mut connection = connections.connection().ok_or(Unavailable)?;
                let mut publish = redis::cmd("PUBLISH");
                publish.arg(channel).arg(message);
                with_call_timeout(connections, publish.exec_async(&mut connection)).await
            }
            #[cfg(test)]
            Self::Fake(connection) => connection.publish(message),
        }
    }

    /// Why the store is unavailable; `None` while it is connected.
    pub(super) fn last_error(&self) -> Option<String> {
        match self {
            Self::Redis { connections, .. } => connections.last_error(),
            #[cfg(test)]
            Self::Fake(connection) => connection.last_error(),
        }
    }

    /// Whether the first connection attempt has ended.
    pub(super) fn was_attempted(&self) -> bool {
        match self {
            Self::Redis { connections, .. } => connections.was_attempted(),
            #[cfg(test)]
            Self::Fake(_) => true,
        }
    }

    /// Probes the connection now.
    pub(super) fn request_probe(&self) {
        match self {
            Self::Redis { connections, .. } => connections.request_probe(),
            #[cfg(test)]
            Self::Fake(_) => {}
        }
    }
}

/// Longer than one response may take, because a call can need several: a cluster redirects it, or the server has
/// lost the script and needs its text.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);

async fn with_call_timeout<T>(
    connections: &ConnectionManager,
    response: impl Future<Output = RedisResult<T>>,
) -> Result<T, Unavailable> {
    match timeout(CALL_TIMEOUT, response).await {
        Ok(result) => result.map_err(|error| call_failed(connections, &error)),
        Err(_) => Err(call_failed(connections, &timeout_error())),
    }
}

/// A reply of an unexpected type concerns only this name, so the connection is kept.
fn call_failed(connections: &ConnectionManager, error: &RedisError) -> Unavailable {
    match error.kind() {
        ErrorKind::UnexpectedReturnType => tracing::warn!("redis response has an unexpected type"),
        _ => connections.on_call_failed(error),
    }
    Unavailable
}
