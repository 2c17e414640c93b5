//! Logs to stderr, with format and level from the configuration and no secret at any level. Another thread writes the
//! lines, so that a blocked stderr delays nothing.

mod escape;
mod non_blocking;

use std::{io, io::IsTerminal, time::Duration};

use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::{
    EnvFilter, Layer, Registry, filter::FilterFn, fmt, fmt::MakeWriter, layer::SubscriberExt,
    registry::LookupSpan, reload, util::SubscriberInitExt,
};

use self::{escape::EscapingMakeWriter, non_blocking::NonBlocking};
use super::{access_log::Stderr, journal};
use crate::config::{LogConfig, LogFormat, LoggedRequests};

/// A handle of the running log, whose level can be changed.
#[derive(Clone)]
pub struct LogHandle {
    filter: reload::Handle<EnvFilter, Registry>,
    /// `None` if the caller provides the writer.
    writer: Option<NonBlocking>,
}

impl LogHandle {
    /// Starts the log of this process. To be called once, with [`flush`](Self::flush) at the exit. Fails if the thread
    /// cannot be started.
    pub fn start(log: &LogConfig) -> io::Result<Self> {
        let writer = NonBlocking::start(Box::new(Stderr))?;
        let (colour, has_priorities) = (io::stderr().is_terminal(), journal::is_stderr_journal());
        let handle = Self::start_with(log, colour, has_priorities, writer.clone());
        Ok(Self { writer: Some(writer), ..handle })
    }

    /// Starts the log with a writer of the caller; `colour` is for terminals.
    pub fn start_with_writer<W>(log: &LogConfig, colour: bool, out: W) -> Self
    where
        W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
    {
        Self::start_with(log, colour, false, out)
    }

    fn start_with<W>(log: &LogConfig, colour: bool, has_priorities: bool, out: W) -> Self
    where
        W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
    {
        let (filter, handle) = reload::Layer::new(build_filter(log));
        let registry = tracing_subscriber::registry().with(filter);
        // A second start, as in tests, keeps the first subscriber.
        let _ = registry.with(build_layer(log.format, colour, has_priorities, out)).try_init();
        Self { filter: handle, writer: None }
    }

    /// Waits until every line written before is output, for at most `timeout`; returns whether it is. Blocks the
    /// thread.
    pub fn flush(&self, timeout: Duration) -> bool {
        self.writer.as_ref().is_none_or(|writer| writer.flush(timeout))
    }

    /// Applies a changed level.
    pub fn update_filter(&self, log: &LogConfig) {
        let _ = self.filter.reload(build_filter(log));
    }
}

/// The level of the configuration, or the directives of `RUST_LOG`. The `ready` message and the access log stay enabled
/// at every level.
fn build_filter(log: &LogConfig) -> EnvFilter {
    let directives = std::env::var(EnvFilter::DEFAULT_ENV).ok().filter(|directives| !directives.is_empty());
    let filter = EnvFilter::new(directives.unwrap_or_else(|| log.level.as_str().to_owned()));
    let always = ["wecom_proxy::ready=info", "access=info"];
    let always = always
        .iter()
        .take(if log.access == LoggedRequests::None { 1 } else { 2 })
        .filter_map(|directive| directive.parse().ok());
    always.fold(filter, EnvFilter::add_directive)
}

fn build_layer<S, W>(
    format: LogFormat,
    colour: bool,
    has_priorities: bool,
    out: W,
) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let json = matches!(format, LogFormat::Json);
    let layer = fmt::layer().with_writer(EscapingMakeWriter { out, json, has_priorities });
    match format {
        LogFormat::Json => {
            layer.json().flatten_event(true).with_filter(FilterFn::new(is_allowed_event)).boxed()
        }
        LogFormat::Text => layer.with_ansi(colour).with_filter(FilterFn::new(is_allowed_event)).boxed(),
    }
}

/// Allows only errors from libraries: their traces contain wire data with tokens and keys, and their warnings can be
/// caused by any client without a rate limit.
fn is_allowed_event(event: &Metadata<'_>) -> bool {
    let is_own = event.target() == "access" || event.target().starts_with("wecom_proxy");
    is_own || *event.level() <= Level::ERROR
}
