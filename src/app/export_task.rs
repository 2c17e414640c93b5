//! Traces on their way out: a task on the caller's runtime, where it takes no worker's time.

use std::time::Duration;

use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout},
};

use crate::{
    config::Config,
    telemetry::traces::{Collector, CommonAttributes, Exporter, Traces},
};

/// How long the last traces may take at the end, whatever else has been quick, and how long they may take at least.
const MAX_FINAL_EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
const MIN_FINAL_EXPORT_TIMEOUT: Duration = Duration::from_secs(1);

/// The running exporter.
pub(super) struct ExportTask {
    pub(super) traces: Traces,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl ExportTask {
    /// Starts it, with room for the spans of so many workers.
    pub(super) fn start(receiver: Collector, config: &Config, workers: usize) -> Self {
        let traces = Traces::new(common_attributes(config), workers);
        let (stop, end_seen) = watch::channel(false);
        let task = tokio::spawn(Exporter::new(traces.clone(), receiver).run(end_seen));
        Self { traces, stop, task }
    }

    /// Delivers what is left, when nothing more is written, as far as that can be done until then.
    pub(super) async fn finish(self, until: Instant) {
        let Self { traces, stop: ending, mut task } = self;
        let before = traces.dropped();
        ending.send_replace(true);
        let most = until
            .saturating_duration_since(Instant::now())
            .clamp(MIN_FINAL_EXPORT_TIMEOUT, MAX_FINAL_EXPORT_TIMEOUT);
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

fn common_attributes(config: &Config) -> CommonAttributes {
    CommonAttributes {
        scheme: if config.server.tls.is_some() { "https" } else { "http" },
        upstream_url: config.upstream.origin(),
        upstream_host: config.upstream.host.clone(),
        upstream_port: config.upstream.port,
    }
}
