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
    channel,
    dial::{ANSWER, CONNECT, Connection, Dialler},
    key,
    news::Word,
};

/// Why there is no connection before the first attempt has ended.
const NOT_YET: &str = "not connected yet";
/// How often a connection is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Shortest and longest pause between two attempts to connect.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// A store that was there for less than this, and not for the first time, is connected to no faster than one that is away.
const STEADY: Duration = Duration::from_secs(10);
/// How long what a trial leaves behind is kept.
const LEFT_BEHIND: Duration = Duration::from_secs(10);

/// The way to the store.
pub(super) struct Link {
    dialler: Dialler,
    channel: String,
    /// Keys for trials, of the two kinds that there are.
    probes: [String; 2],
    trial: Script,
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
            channel: channel(prefix),
            probes: ["hash", "text"].map(|kind| key(prefix, "probe", kind)),
            trial: Script::new(include_str!("scripts/trial.lua")),
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

    /// Whether the first attempt to connect has ended.
    pub(super) fn is_tried(&self) -> bool {
        self.lock().as_deref() != Some(NOT_YET)
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

    /// Connects, subscribes, and tries whether the store does what it will be asked for.
    async fn connect(&self) -> RedisResult<()> {
        let mut connection = self.dialler.dial().await?;
        connection.subscribe(&self.channel).await?;
        let mut trial = self.trial.key(&self.probes[0]);
        trial.key(&self.probes[1]).arg(&self.channel).arg(LEFT_BEHIND.as_millis() as u64);
        trial.invoke_async::<()>(&mut connection).await?;
        self.current.store(Some(Arc::new(connection)));
        if self.lock().take().is_some() {
            tracing::info!("the store is there; tokens are shared with the other replicas");
            let _ = self.says.send(Word::Joined);
        }
        Ok(())
    }

    /// A store that is full, or has become a replica, answers but takes nothing. And of a cluster, the one server may have
    /// gone through which news came; nothing else asks that one for anything.
    async fn look(&self, connection: &mut Connection, doubted: bool) -> RedisResult<()> {
        if doubted {
            timeout(ANSWER, connection.subscribe(&self.channel)).await.unwrap_or_else(|_| Err(late()))?;
        }
        let mut probe = redis::cmd("SET");
        probe.arg(&self.probes[1]).arg(1).arg("PX").arg(LEFT_BEHIND.as_millis() as u64);
        match timeout(ANSWER, probe.exec_async(connection)).await {
            Ok(looked) => looked,
            Err(_) => Err(late()),
        }
    }
}

pub(super) fn late() -> RedisError {
    RedisError::from(std::io::Error::new(std::io::ErrorKind::TimedOut, "it does not answer in time"))
}

/// Keeps the link connected as long as there is one.
async fn keep(link: Weak<Link>) {
    let (mut pause, mut joined) = (PAUSES.0, None::<Instant>);
    loop {
        let Some(link) = link.upgrade() else { return };
        match link.connection() {
            None => {
                match joined.take() {
                    Some(joined) if joined.elapsed() < STEADY => {
                        sleep(pause).await;
                        pause = (2 * pause).min(PAUSES.1);
                    }
                    Some(_) => pause = PAUSES.0,
                    None => {}
                }
                match timeout(2 * CONNECT, link.connect()).await.unwrap_or_else(|_| Err(late())) {
                    Ok(()) => joined = Some(Instant::now()),
                    Err(error) => {
                        link.lose(error.to_string());
                        sleep(pause).await;
                        pause = (2 * pause).min(PAUSES.1);
                    }
                }
            }
            Some(mut connection) => {
                let doubted = timeout(LOOK, link.troubled.notified()).await.is_ok();
                if link.connection().is_some()
                    && let Err(error) = link.look(&mut connection, doubted).await
                {
                    link.lose(error.to_string());
                }
            }
        }
    }
}
