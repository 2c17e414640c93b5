//! How the scripts are run: by the configured server, or, in tests, by a pretended one.

use std::{future::Future, sync::Arc, time::Duration};

use redis::{ErrorKind, FromRedisValue, RedisError, RedisResult, ToRedisArgs};
use tokio::time::timeout;

use super::{
    Away,
    link::{Link, late},
};

/// One of the store's scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Script {
    Claim,
    Read,
    Put,
    End,
    Extend,
    Count,
}

/// A script's call.
pub(super) struct Ask {
    pub(super) script: Script,
    pub(super) keys: Vec<String>,
    pub(super) arguments: Vec<Vec<u8>>,
}

/// Where the scripts run.
pub(super) enum Way {
    Redis {
        link: Arc<Link>,
        /// In the order of [`Script`].
        scripts: Box<[redis::Script; 6]>,
    },
    #[cfg(test)]
    Pretended(super::pretended::Line),
}

impl Ask {
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

impl Way {
    pub(super) fn redis(link: Arc<Link>) -> Self {
        let texts = [
            include_str!("scripts/claim.lua"),
            include_str!("scripts/read.lua"),
            include_str!("scripts/put.lua"),
            include_str!("scripts/end.lua"),
            include_str!("scripts/extend.lua"),
            include_str!("scripts/count.lua"),
        ];
        Self::Redis { link, scripts: Box::new(texts.map(redis::Script::new)) }
    }

    pub(super) async fn ask<T: FromRedisValue>(&self, ask: Ask) -> Result<T, Away> {
        match self {
            Self::Redis { link, scripts } => {
                let mut connection = link.connection().ok_or(Away)?;
                let mut call = scripts[ask.script as usize].prepare_invoke();
                for key in ask.keys {
                    call.key(key);
                }
                for argument in ask.arguments {
                    call.arg(argument);
                }
                within(link, call.invoke_async(&mut connection)).await
            }
            #[cfg(test)]
            Self::Pretended(line) => T::from_redis_value(line.ask(ask).await?).map_err(|_| Away),
        }
    }

    pub(super) async fn tell(&self, channel: String, news: &str) -> Result<(), Away> {
        match self {
            Self::Redis { link, .. } => {
                let mut connection = link.connection().ok_or(Away)?;
                let mut publish = redis::cmd("PUBLISH");
                publish.arg(channel).arg(news);
                within(link, publish.exec_async(&mut connection)).await
            }
            #[cfg(test)]
            Self::Pretended(line) => line.tell(news),
        }
    }

    /// Why it leads nowhere; `None` while it does not.
    pub(super) fn trouble(&self) -> Option<String> {
        match self {
            Self::Redis { link, .. } => link.trouble(),
            #[cfg(test)]
            Self::Pretended(line) => line.trouble(),
        }
    }

    /// Whether it is known where it leads.
    pub(super) fn is_tried(&self) -> bool {
        match self {
            Self::Redis { link, .. } => link.is_tried(),
            #[cfg(test)]
            Self::Pretended(_) => true,
        }
    }

    /// Has the connection looked at now.
    pub(super) fn doubt(&self) {
        match self {
            Self::Redis { link, .. } => link.doubt(),
            #[cfg(test)]
            Self::Pretended(_) => {}
        }
    }
}

/// One answer may need several: of a cluster another server is asked, of a script that was forgotten its text is sent.
const LONGEST: Duration = Duration::from_secs(2);

async fn within<T>(link: &Link, asking: impl Future<Output = RedisResult<T>>) -> Result<T, Away> {
    match timeout(LONGEST, asking).await {
        Ok(answer) => answer.map_err(|error| failed(link, &error)),
        Err(_) => Err(failed(link, &late())),
    }
}

/// An answer that makes no sense is nothing against the connection: it is about this one name.
fn failed(link: &Link, error: &RedisError) -> Away {
    match error.kind() {
        ErrorKind::UnexpectedReturnType => tracing::warn!("the store gave an answer that makes no sense"),
        _ => link.failed(error),
    }
    Away
}
