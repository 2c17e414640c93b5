//! Agents in trouble: why, since when, and what to do where.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::SystemTime,
};

use serde_json::{Value, json};
use tokio::sync::oneshot::error::RecvError;

use super::{Admin, unix_seconds};
use crate::{
    blocking,
    telemetry::metrics::{AgentLabels, AgentTrouble, HourSnapshot, TextEncoder, TroubleReason},
    wecom::errcode::{self, Explanation},
};

/// The agents in trouble.
#[derive(Default)]
pub(super) struct Troubles {
    /// Those with the most failures first.
    list: Vec<AgentTrouble>,
    by_agent: HashMap<Arc<str>, usize>,
}

impl Troubles {
    pub(super) fn new(mut list: Vec<AgentTrouble>) -> Self {
        list.sort_by(|one, other| (other.failed, &one.agent).cmp(&(one.failed, &other.agent)));
        let names = blocking::in_slices(&list).map(|trouble| trouble.agent.clone());
        let by_agent = names.enumerate().map(|(nth, agent)| (agent, nth)).collect();
        Self { list, by_agent }
    }

    pub(super) fn of(&self, agent: &str) -> Option<&AgentTrouble> {
        self.by_agent.get(agent).map(|index| &self.list[*index])
    }

    /// Those with the most failures first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &AgentTrouble> {
        self.list.iter()
    }
}

impl Admin {
    /// The agents in trouble and the last hour as of now, with what the workers counted since the last collection.
    /// Collected at the ordinary priority: see [`Metrics::collect`](crate::telemetry::metrics::Metrics::collect).
    pub(super) async fn collect(self: &Arc<Self>) -> Result<(Vec<AgentTrouble>, HourSnapshot), RecvError> {
        let metrics = self.metrics.clone();
        let collect = move || {
            let now = SystemTime::now();
            metrics.collect(now);
            (metrics.troubles(now), metrics.last_hour())
        };
        blocking::spawn(collect).await
    }
}

/// Writes how many agents are in trouble, by reason.
pub(super) fn write_trouble_metrics(text: &mut TextEncoder, troubles: &[AgentTrouble], labels: &AgentLabels) {
    let mut samples = BTreeMap::<(&str, String), u64>::new();
    for trouble in blocking::in_slices(troubles) {
        let agent = labels.of(&trouble.counted_as);
        for reason in &trouble.reasons {
            *samples.entry((agent, reason.to_string())).or_default() += 1;
        }
    }
    let name = "wecom_proxy_agent_trouble";
    let help = "Agents in trouble in the last five minutes, by reason; others have no sample.";
    let samples = samples
        .into_iter()
        .map(|((agent, reason), count)| ([("agent", agent.to_owned()), ("reason", reason)], count));
    text.write_family(name, "gauge", help, samples);
}

/// A trouble as JSON; `null` for an agent without.
pub(super) fn trouble_json(trouble: Option<&AgentTrouble>) -> Value {
    let Some(trouble) = trouble else { return Value::Null };
    let first = trouble.reasons.first().copied().unwrap_or(TroubleReason::HalfFailed);
    let [english, chinese] = explanation_json(advice(first));
    json!({
        "reasons": trouble.reasons.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "failing_since": unix_seconds(trouble.failing_since),
        "attempts": trouble.attempts,
        "requests": trouble.requests,
        "failed": trouble.failed,
        "address": trouble.untrusted_address.map(|address| address.to_string()),
        "en": english,
        "zh": chinese,
    })
}

/// Meaning, action and place, in English and in Chinese.
pub(super) fn explanation_json(it: &Explanation) -> [Value; 2] {
    [
        json!({ "meaning": it.meaning_en, "action": it.action_en, "place": it.console_path_en }),
        json!({ "meaning": it.meaning_zh, "action": it.action_zh, "place": it.console_path_zh }),
    ]
}

/// What an operator reads about a reason.
fn advice(reason: TroubleReason) -> &'static Explanation {
    match reason {
        TroubleReason::Errcode(errcode) => errcode::explain(errcode).unwrap_or(&errcode::HALF_FAILED),
        TroubleReason::UpstreamTimeout => &errcode::UPSTREAM_TIMEOUT,
        TroubleReason::HalfFailed => &errcode::HALF_FAILED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_advice_in_both_languages() {
        let errcodes = (-1..1_000_000).filter(|errcode| errcode::is_trouble(*errcode));
        let reasons = errcodes.map(TroubleReason::Errcode);
        for reason in reasons.chain([TroubleReason::UpstreamTimeout, TroubleReason::HalfFailed]) {
            let Explanation { meaning_en, action_en, meaning_zh, action_zh, .. } = advice(reason);
            assert!(meaning_en.is_ascii() && action_en.is_ascii(), "{reason}");
            assert!(!meaning_zh.is_ascii() && !action_zh.is_ascii(), "{reason}");
            let is_general = meaning_en.starts_with("at least half");
            assert_eq!(is_general, reason == TroubleReason::HalfFailed, "{reason}");
        }
    }
}
