//! The connection to the store: made, watched and made anew in the background. Whoever wants something of the store learns
//! at once whether it is there.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use redis::{RedisError, RedisResult};
use tokio::{
    runtime::Handle,
    sync::{Notify, mpsc},
    time::{sleep, timeout},
};

use super::{
    dial::{ANSWER, CONNECT, Connection, Dialler},
    news::Word,
};

/// Why there is no connection before the first attempt has ended.
const NOT_YET: &str = "not connected yet";
/// How often a connection is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Shortest and longest pause between two attempts to connect.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// The way to the store.
pub(super) struct Link {
    dialler: Dialler,
    channel: String,
    probe: String,
    current: ArcSwapOption<Connection>,
    /// Why it is away; `None` while it is there.
    trouble: Mutex<Option<String>>,
    troubled: Notify,
    says: mpsc::UnboundedSender<Word>,
}

impl Link {
    /// A link that begins to connect on `runtime`. It says to `says` when it is connected.
    pub(super) fn open(
        dialler: Dialler,
        prefix: &str,
        runtime: &Handle,
        says: mpsc::UnboundedSender<Word>,
    ) -> Arc<Self> {
        let link = Arc::new(Self {
            dialler,
            channel: format!("{prefix}news"),
            probe: format!("{prefix}probe"),
            current: ArcSwapOption::empty(),
            trouble: Mutex::new(Some(NOT_YET.to_owned())),
            troubled: Notify::new(),
            says,
        });
        runtime.spawn(keep(Arc::downgrade(&link)));
        link
    }

    /// The connection, if the store is there.
    pub(super) fn connection(&self) -> Option<Connection> {
        self.current.load().as_deref().cloned()
    }

    /// Why the store is away; `None` while it is there.
    pub(super) fn trouble(&self) -> Option<String> {
        self.lock().clone()
    }

    /// Notes that the store did not do what it was asked to.
    pub(super) fn failed(&self, error: &RedisError) {
        self.lose(error.to_string());
        self.doubt();
    }

    /// Has the connection looked at now.
    pub(super) fn doubt(&self) {
        self.troubled.notify_one();
    }

    fn lose(&self, why: String) {
        self.current.store(None);
        let before = self.lock().replace(why.clone());
        if before.is_none_or(|before| before == NOT_YET) {
            tracing::warn!(why, "the store is away; this replica goes on by itself from memory");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects, subscribes, and tries whether the store takes what it is given.
    async fn connect(&self) -> RedisResult<()> {
        let mut connection = self.dialler.dial().await?;
        connection.subscribe(&self.channel).await?;
        self.look(&mut connection).await?;
        self.current.store(Some(Arc::new(connection)));
        if self.lock().take().is_some() {
            tracing::info!("the store is there; tokens are shared with the other replicas");
            let _ = self.says.send(Word::Joined);
        }
        Ok(())
    }

    /// A store that is full, or has become a replica, answers but takes nothing.
    async fn look(&self, connection: &mut Connection) -> RedisResult<()> {
        let mut probe = redis::cmd("SET");
        probe.arg(&self.probe).arg(1).arg("PX").arg(10_000);
        match timeout(ANSWER, probe.exec_async(connection)).await {
            Ok(looked) => looked,
            Err(_) => Err(late()),
        }
    }
}

fn late() -> RedisError {
    RedisError::from(std::io::Error::new(std::io::ErrorKind::TimedOut, "it does not answer in time"))
}

/// Keeps the link connected as long as there is one.
async fn keep(link: Weak<Link>) {
    let mut pause = PAUSES.0;
    loop {
        let Some(link) = link.upgrade() else { return };
        match link.connection() {
            None => match timeout(2 * CONNECT, link.connect()).await.unwrap_or_else(|_| Err(late())) {
                Ok(()) => pause = PAUSES.0,
                Err(error) => {
                    link.lose(error.to_string());
                    sleep(pause).await;
                    pause = (2 * pause).min(PAUSES.1);
                }
            },
            Some(mut connection) => {
                let _ = timeout(LOOK, link.troubled.notified()).await;
                if link.connection().is_some()
                    && let Err(error) = link.look(&mut connection).await
                {
                    link.lose(error.to_string());
                }
            }
        }
    }
}
