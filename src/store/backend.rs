//! How the scripts are run: by the configured server, or, in tests, by a pretended one.

use std::{future::Future, sync::Arc, time::Duration};

use redis::{ErrorKind, FromRedisValue, RedisError, RedisResult, ToRedisArgs};
use tokio::time::timeout;

use super::{
    Unavailable,
    connection_manager::{ConnectionManager, timeout_error},
};

/// One of the store's scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Script {
    Claim,
    Read,
    Put,
    EndLease,
    ExtendLease,
    ConsumeLimits,
}

/// A script's call.
pub(super) struct ScriptCall {
    pub(super) script: Script,
    pub(super) keys: Vec<String>,
    pub(super) arguments: Vec<Vec<u8>>,
}

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

impl ScriptCall {
    pub(super) fn new(script: Script) -> Self {
        Self { script, keys: Vec::new(), arguments: Vec::new() }
    }

    pub(super) fn key(&mut self, key: String) -> &mut Self {
        self.keys.push(key);
        self
    }

    pub(super) fn arg(&mut self, argument: impl ToRedisArgs) -> &mut Self {
        self.arguments.extend(argument.to_redis_args());
        self
    }
}

impl Backend {
    pub(super) fn redis(connections: Arc<ConnectionManager>) -> Self {
        let texts = [
            include_str!("scripts/claim.lua"),
            include_str!("scripts/read.lua"),
            include_str!("scripts/put.lua"),
            include_str!("scripts/end.lua"),
            include_str!("scripts/extend.lua"),
            include_str!("scripts/count.lua"),
        ];
        Self::Redis { connections, scripts: Box::new(texts.map(redis::Script::new)) }
    }

    pub(super) async fn call<T: FromRedisValue>(&self, ask: ScriptCall) -> Result<T, Unavailable> {
        match self {
            Self::Redis { connections: link, scripts } => {
                let mut connection = link.connection().ok_or(Unavailable)?;
                let mut call = scripts[ask.script as usize].prepare_invoke();
                for key in ask.keys {
                    call.key(key);
                }
                for argument in ask.arguments {
                    call.arg(argument);
                }
                with_call_timeout(link, call.invoke_async(&mut connection)).await
            }
            #[cfg(test)]
            Self::Fake(line) => T::from_redis_value(line.call(ask).await?).map_err(|_| Unavailable),
        }
    }

    pub(super) async fn publish(&self, channel: String, news: &str) -> Result<(), Unavailable> {
        match self {
            Self::Redis { connections: link, .. } => {
                let mut connection = link.connection().ok_or(Unavailable)?;
                let mut publish = redis::cmd("PUBLISH");
                publish.arg(channel).arg(news);
                with_call_timeout(link, publish.exec_async(&mut connection)).await
            }
            #[cfg(test)]
            Self::Fake(line) => line.publish(news),
        }
    }

    /// Why it leads nowhere; `None` while it does not.
    pub(super) fn last_error(&self) -> Option<String> {
        match self {
            Self::Redis { connections: link, .. } => link.last_error(),
            #[cfg(test)]
            Self::Fake(line) => line.last_error(),
        }
    }

    /// Whether it is known where it leads.
    pub(super) fn was_attempted(&self) -> bool {
        match self {
            Self::Redis { connections: link, .. } => link.was_attempted(),
            #[cfg(test)]
            Self::Fake(_) => true,
        }
    }

    /// Has the connection looked at now.
    pub(super) fn request_probe(&self) {
        match self {
            Self::Redis { connections: link, .. } => link.request_probe(),
            #[cfg(test)]
            Self::Fake(_) => {}
        }
    }
}

/// One answer may need several: of a cluster another server is asked, of a script that was forgotten its text is sent.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);

async fn with_call_timeout<T>(
    link: &ConnectionManager,
    asking: impl Future<Output = RedisResult<T>>,
) -> Result<T, Unavailable> {
    match timeout(CALL_TIMEOUT, asking).await {
        Ok(answer) => answer.map_err(|error| call_failed(link, &error)),
        Err(_) => Err(call_failed(link, &timeout_error())),
    }
}

/// An answer that makes no sense is nothing against the connection: it is about this one name.
fn call_failed(link: &ConnectionManager, error: &RedisError) -> Unavailable {
    match error.kind() {
        ErrorKind::UnexpectedReturnType => tracing::warn!("the store gave an answer that makes no sense"),
        _ => link.on_call_failed(error),
    }
    Unavailable
}
