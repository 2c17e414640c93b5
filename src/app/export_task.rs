//! Exports traces in a task on the caller's runtime, where it takes no time from a worker.

use std::time::Duration;

use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout},
};

use super::instance;
use crate::{
    config::{Config, TracesConfig},
    telemetry::traces::{Collector, CommonAttributes, Exporter, Traces, UpstreamAttributes},
};

/// Bounds of the last export at shutdown, whatever is left of `server.shutdown_grace`.
const MAX_FINAL_EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
const MIN_FINAL_EXPORT_TIMEOUT: Duration = Duration::from_secs(1);

/// The running exporter.
pub(super) struct ExportTask {
    pub(super) traces: Traces,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl ExportTask {
    /// Starts the exporter, with buffers for the spans of `workers` workers.
    pub(super) fn start(
        collector: Collector,
        settings: &TracesConfig,
        config: &Config,
        workers: usize,
    ) -> Self {
        let traces = Traces::new(common_attributes(config), settings.sampler, workers);
        let resource = resource(settings, &instance::id(config));
        let (stop, stop_seen) = watch::channel(false);
        let task = tokio::spawn(Exporter::new(traces.clone(), collector, &resource).run(stop_seen));
        Self { traces, stop, task }
    }

    /// Exports the buffered spans by `deadline`. Must be called when no more spans are written.
    pub(super) async fn finish(self, deadline: Instant) {
        let Self { traces, stop, mut task } = self;
        let dropped_before = traces.dropped();
        stop.send_replace(true);
        let timeout_left = deadline
            .saturating_duration_since(Instant::now())
            .clamp(MIN_FINAL_EXPORT_TIMEOUT, MAX_FINAL_EXPORT_TIMEOUT);
        let timed_out = timeout(timeout_left, &mut task).await.is_err();
        if timed_out {
            task.abort();
        }
        let dropped = traces.dropped() - dropped_before;
        if timed_out || dropped > 0 {
            tracing::warn!("spans lost at shutdown");
        }
    }
}

fn common_attributes(config: &Config) -> CommonAttributes {
    let upstreams = config.all_upstreams().map(|(_, upstream)| UpstreamAttributes {
        url: upstream.base_url(),
        host: upstream.host.clone(),
        port: upstream.port,
    });
    CommonAttributes {
        scheme: if config.server.tls.is_some() { "https" } else { "http" },
        upstreams: upstreams.collect(),
    }
}

/// The attributes of the resource: those of the environment, then the ones that it does not name.
fn resource(settings: &TracesConfig, instance: &str) -> Vec<(String, String)> {
    let mut attributes = settings.resource.clone();
    for (name, value) in [("service.version", env!("CARGO_PKG_VERSION")), ("service.instance.id", instance)] {
        if settings.resource_attribute(name).is_none() {
            attributes.push((name.to_owned(), value.to_owned()));
        }
    }
    attributes
}
