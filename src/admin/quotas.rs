//! `/api/quotas`: WeCom's quotas of which more than half is used.

use std::collections::BTreeMap;

use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::{
    Admin,
    response::{AdminBody, json_response},
    scrape::SharedCounts,
};
use crate::{limits::quotas::QuotaUsage, telemetry::metrics::TextEncoder};

/// A ratio has three decimals.
const RATIO_SCALE: f64 = 1000.0;

impl Admin {
    /// The quotas, the fullest first.
    pub(super) fn quotas(&self) -> Response<AdminBody> {
        let quotas: Vec<_> = self.settings.quotas.report().iter().map(quota_json).collect();
        json_response(StatusCode::OK, &json!({ "quotas": quotas }))
    }
}

impl SharedCounts {
    pub(super) fn write_quota_metrics(&self, text: &mut TextEncoder) {
        let mut ratios = BTreeMap::<(String, String), f64>::new();
        for usage in &self.quotas {
            let agent = self.labels.of(&usage.agent).to_owned();
            let ratio = ratios.entry((agent, usage.quota.clone())).or_default();
            *ratio = ratio.max(usage.ratio);
        }
        let name = "wecom_proxy_quota_used_ratio";
        let help = "Used share of WeCom's quotas; those of which less than half is used have no sample.";
        let ratios = ratios.into_iter();
        let samples =
            ratios.map(|((agent, quota), ratio)| ([("agent", agent), ("quota", quota)], rounded(ratio)));
        text.write_family(name, "gauge", help, samples);
    }
}

fn quota_json(usage: &QuotaUsage) -> Value {
    let QuotaUsage { agent, quota, path, per, limit, window, used, ratio, spent_in, held_for } = usage;
    json!({
        "agent": agent,
        "quota": quota,
        "path": path,
        "per": per.name(),
        "limit": limit,
        "window_seconds": window.as_secs(),
        "used": used,
        "ratio": rounded(*ratio),
        "spent_in_seconds": spent_in.map(|spent_in| spent_in.as_secs()),
        "held_seconds": held_for.map(|held_for| held_for.as_secs()),
    })
}

fn rounded(ratio: f64) -> f64 {
    (ratio * RATIO_SCALE).round() / RATIO_SCALE
}
