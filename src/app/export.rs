//! Traces on their way out: a task on the caller's runtime, where it takes no worker's time.

use std::time::Duration;

use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout},
};

use crate::{
    config::Config,
    traces::{Exporter, Facts, Receiver, Traces},
};

/// How long the last traces may take at the end, whatever else has been quick, and how long they may take at least.
const MOST: Duration = Duration::from_secs(5);
const LEAST: Duration = Duration::from_secs(1);

/// The running exporter.
pub(super) struct Export {
    pub(super) traces: Traces,
    ending: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Export {
    /// Starts it, with room for the spans of so many workers.
    pub(super) fn start(receiver: Receiver, config: &Config, workers: usize) -> Self {
        let traces = Traces::new(facts(config), workers);
        let (ending, end_seen) = watch::channel(false);
        let task = tokio::spawn(Exporter::new(traces.clone(), receiver).run(end_seen));
        Self { traces, ending, task }
    }

    /// Delivers what is left, when nothing more is written, as far as that can be done until then.
    pub(super) async fn end(self, until: Instant) {
        let Self { traces, ending, mut task } = self;
        let before = traces.dropped();
        ending.send_replace(true);
        let most = until.saturating_duration_since(Instant::now()).clamp(LEAST, MOST);
        let slow = timeout(most, &mut task).await.is_err();
        if slow {
            task.abort();
        }
        let lost = traces.dropped() - before;
        if slow || lost > 0 {
            tracing::warn!("the last traces were not delivered");
        }
    }
}

fn facts(config: &Config) -> Facts {
    Facts {
        scheme: if config.server.tls.is_some() { "https" } else { "http" },
        upstream: config.upstream.origin(),
        host: config.upstream.host.clone(),
        port: config.upstream.port,
    }
}
