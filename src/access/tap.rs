//! Whether anybody listens to the access log: what `tracing` would do with a line, asked without making one.

use tracing::{
    Callsite, Level, Metadata,
    callsite::{DefaultCallsite, Identifier},
    dispatcher,
    field::FieldSet,
    metadata::Kind,
};

/// The target under which `RUST_LOG` knows the lines.
const TARGET: &str = "access";

/// Lines of one level. The subscriber's verdict is kept here and changed by it when its filter changes.
pub(super) struct Tap(&'static DefaultCallsite);

pub(super) static INFO: Tap = Tap(&INFO_SITE);
pub(super) static WARN: Tap = Tap(&WARN_SITE);

static INFO_SITE: DefaultCallsite = DefaultCallsite::new(&INFO_LINES);
static WARN_SITE: DefaultCallsite = DefaultCallsite::new(&WARN_LINES);
static INFO_LINES: Metadata<'static> = lines(Level::INFO, &INFO_SITE);
static WARN_LINES: Metadata<'static> = lines(Level::WARN, &WARN_SITE);

const fn lines(level: Level, site: &'static DefaultCallsite) -> Metadata<'static> {
    let fields = FieldSet::new(&[], Identifier(site));
    Metadata::new("request", TARGET, level, None, None, None, fields, Kind::EVENT)
}

impl Tap {
    /// Costs next to nothing unless a filter must be asked each time.
    pub(super) fn is_open(&self) -> bool {
        let verdict = self.0.interest();
        verdict.is_always()
            || (!verdict.is_never() && dispatcher::get_default(|log| log.enabled(self.0.metadata())))
    }
}
