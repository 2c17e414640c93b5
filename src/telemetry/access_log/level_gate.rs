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
pub(super) struct LevelGate(&'static DefaultCallsite);

pub(super) static INFO: LevelGate = LevelGate(&INFO_CALLSITE);
pub(super) static WARN: LevelGate = LevelGate(&WARN_CALLSITE);

static INFO_CALLSITE: DefaultCallsite = DefaultCallsite::new(&INFO_METADATA);
static WARN_CALLSITE: DefaultCallsite = DefaultCallsite::new(&WARN_METADATA);
static INFO_METADATA: Metadata<'static> = metadata(Level::INFO, &INFO_CALLSITE);
static WARN_METADATA: Metadata<'static> = metadata(Level::WARN, &WARN_CALLSITE);

const fn metadata(level: Level, site: &'static DefaultCallsite) -> Metadata<'static> {
    let fields = FieldSet::new(&[], Identifier(site));
    Metadata::new("request", TARGET, level, None, None, None, fields, Kind::EVENT)
}

impl LevelGate {
    /// Costs next to nothing unless a filter must be asked each time.
    pub(super) fn is_enabled(&self) -> bool {
        let verdict = self.0.interest();
        verdict.is_always()
            || (!verdict.is_never() && dispatcher::get_default(|log| log.enabled(self.0.metadata())))
    }
}
