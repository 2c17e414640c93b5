//! Logs to stderr: format and level from the configuration, no secret at any level. A thread of its own writes the lines, so
//! that a stderr which nobody reads holds up nothing.

mod escape;
mod non_blocking;

use std::{io, io::IsTerminal, time::Duration};

use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::{
    EnvFilter, Layer, Registry, filter::FilterFn, fmt, fmt::MakeWriter, layer::SubscriberExt,
    registry::LookupSpan, reload, util::SubscriberInitExt,
};

use self::{escape::EscapingMakeWriter, non_blocking::NonBlocking};
use super::access_log::Stderr;
use crate::config::{LogConfig, LogFormat};

/// The running log, whose level can be changed.
#[derive(Clone)]
pub struct LogHandle {
    filter: reload::Handle<EnvFilter, Registry>,
    /// `None` where somebody else writes the lines.
    writer: Option<NonBlocking>,
}

impl LogHandle {
    /// Starts the log of this process. Call it once, and [`flush`](Self::flush) at the end. Fails where no thread can be
    /// started.
    pub fn start(log: LogConfig) -> io::Result<Self> {
        let quill = NonBlocking::start(Box::new(Stderr))?;
        let begun = Self::start_with_writer(log, io::stderr().is_terminal(), quill.clone());
        Ok(Self { writer: Some(quill), ..begun })
    }

    /// The same on anything that makes a writer for each line; `colour` for people at a terminal.
    pub fn start_with_writer<W>(log: LogConfig, colour: bool, out: W) -> Self
    where
        W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
    {
        let (filter, handle) = reload::Layer::new(build_filter(log));
        let registry = tracing_subscriber::registry().with(filter);
        // A second start, as in tests, keeps the first log.
        let _ = registry.with(build_layer(log.format, colour, out)).try_init();
        Self { filter: handle, writer: None }
    }

    /// Waits until every line written before has gone out, but no longer than `most`; returns whether it has. Blocks
    /// its thread.
    pub fn flush(&self, most: Duration) -> bool {
        self.writer.as_ref().is_none_or(|quill| quill.flush(most))
    }

    /// Follows a changed level.
    pub fn update_filter(&self, log: LogConfig) {
        let _ = self.filter.reload(build_filter(log));
    }
}

/// The level of the configuration, unless `RUST_LOG` says otherwise. What an operator always wants to see stays.
fn build_filter(log: LogConfig) -> EnvFilter {
    let spelled = std::env::var(EnvFilter::DEFAULT_ENV).ok().filter(|spelled| !spelled.is_empty());
    let filter = EnvFilter::new(spelled.unwrap_or_else(|| log.level.as_str().to_owned()));
    let always = ["wecom_proxy::ready=info", "access=info"];
    let always =
        always.iter().take(if log.access { 2 } else { 1 }).filter_map(|directive| directive.parse().ok());
    always.fold(filter, EnvFilter::add_directive)
}

fn build_layer<S, W>(format: LogFormat, colour: bool, out: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let json = matches!(format, LogFormat::Json);
    let lines = fmt::layer().with_writer(EscapingMakeWriter { out, json });
    match format {
        LogFormat::Json => {
            lines.json().flatten_event(true).with_filter(FilterFn::new(is_allowed_event)).boxed()
        }
        LogFormat::Text => lines.with_ansi(colour).with_filter(FilterFn::new(is_allowed_event)).boxed(),
    }
}

/// Libraries below trace what goes over the wire, tokens and keys with it, and warn of whatever a stranger sends, as often as
/// it is sent: only their errors are let through.
fn is_allowed_event(event: &Metadata<'_>) -> bool {
    let ours = event.target() == "access" || event.target().starts_with("wecom_proxy");
    ours || *event.level() <= Level::ERROR
}
