//! Whether `tracing` would record an access log line, decided without creating an event.

use tracing::{
    Callsite, Level, Metadata,
    callsite::{DefaultCallsite, Identifier},
    dispatcher,
    field::FieldSet,
    metadata::Kind,
};

/// The target of the lines in `RUST_LOG`.
const TARGET: &str = "access";

/// The callsite of one level. It caches the subscriber's interest, which the subscriber updates when its filter
/// changes.
pub(super) struct LevelGate(&'static DefaultCallsite);

pub(super) static INFO: LevelGate = LevelGate(&INFO_CALLSITE);
pub(super) static WARN: LevelGate = LevelGate(&WARN_CALLSITE);

static INFO_CALLSITE: DefaultCallsite = DefaultCallsite::new(&INFO_METADATA);
static WARN_CALLSITE: DefaultCallsite = DefaultCallsite::new(&WARN_METADATA);
static INFO_METADATA: Metadata<'static> = metadata(Level::INFO, &INFO_CALLSITE);
static WARN_METADATA: Metadata<'static> = metadata(Level::WARN, &WARN_CALLSITE);

const fn metadata(level: Level, callsite: &'static DefaultCallsite) -> Metadata<'static> {
    let fields = FieldSet::new(&[], Identifier(callsite));
    Metadata::new("request", TARGET, level, None, None, None, fields, Kind::EVENT)
}

impl LevelGate {
    /// One atomic load, unless the subscriber must be called for each event.
    pub(super) fn is_enabled(&self) -> bool {
        let interest = self.0.interest();
        interest.is_always()
            || (!interest.is_never()
                && dispatcher::get_default(|dispatch| dispatch.enabled(self.0.metadata())))
    }
}
