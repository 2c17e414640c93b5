//! Which quotas a call has: the built-in table with the rows of `[[quotas.limit]]`.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    config::{PathPattern, QuotaLimit, QuotaScope},
    text::SharedStr,
    wecom::quotas::QUOTAS,
};

/// The rows.
#[derive(Debug)]
pub(super) struct Rules(Vec<Rule>);

#[derive(Debug)]
struct Rule {
    path: PathPattern,
    except: &'static [&'static str],
    per: QuotaScope,
    limit: u32,
    window: Duration,
}

/// The quotas of one call: for each scope its limits, the smallest of each window.
#[derive(Debug)]
pub(super) struct CallQuotas {
    pub(super) path: SharedStr,
    /// In place of the path in hashes.
    pub(super) path_hash: u64,
    pub(super) scopes: Vec<(QuotaScope, Vec<(u32, Duration)>)>,
}

impl Rules {
    pub(super) fn new(configured: &[QuotaLimit]) -> Self {
        let is_replaced = |path: &str, per, window| {
            configured
                .iter()
                .any(|row| row.path.as_str() == path && row.per == per && row.limit.per == window)
        };
        let built_in = QUOTAS.iter().flat_map(|row| {
            row.paths.iter().flat_map(move |path| row.limits.iter().map(move |limit| (row, *path, *limit)))
        });
        let built_in = built_in.filter(|(row, path, (_, window))| !is_replaced(path, row.per, *window));
        let built_in = built_in.map(|(row, path, (limit, window))| Rule {
            path: PathPattern::from_static(path),
            except: row.except,
            per: row.per,
            limit,
            window,
        });
        let configured = configured.iter().map(|row| Rule {
            path: row.path.clone(),
            except: &[],
            per: row.per,
            limit: row.limit.requests,
            window: row.limit.per,
        });
        Self(built_in.chain(configured).collect())
    }

    pub(super) fn quotas_of(&self, path: &str, path_hash: u64) -> CallQuotas {
        let mut scopes = BTreeMap::<QuotaScope, BTreeMap<Duration, u32>>::new();
        for rule in self.0.iter().filter(|rule| rule.path.matches(path) && !rule.except.contains(&path)) {
            let limit = scopes.entry(rule.per).or_default().entry(rule.window).or_insert(rule.limit);
            *limit = rule.limit.min(*limit);
        }
        let scopes = scopes.into_iter().map(|(scope, limits)| {
            (scope, limits.into_iter().map(|(window, limit)| (limit, window)).collect())
        });
        CallQuotas { path: path.into(), path_hash, scopes: scopes.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::RateLimit,
        wecom::quotas::{DAY, UNKNOWN_LIMIT},
    };

    const MINUTE: Duration = Duration::from_secs(60);
    const HOUR: Duration = Duration::from_secs(3600);

    fn configured(path: &'static str, per: QuotaScope, requests: u32) -> QuotaLimit {
        let limit = RateLimit { requests, per: MINUTE };
        QuotaLimit { path: PathPattern::from_static(path), per, limit }
    }

    fn corp_limits(rules: &Rules, path: &str) -> Vec<(u32, Duration)> {
        let found = rules.quotas_of(path, 0).scopes.into_iter().find(|(scope, _)| *scope == QuotaScope::Corp);
        found.map(|(_, limits)| limits).unwrap_or_default()
    }

    #[test]
    fn every_call_has_the_base_quotas_and_its_own() {
        let rules = Rules::new(&[]);
        assert_eq!(corp_limits(&rules, "/cgi-bin/user/get"), [(10_000, MINUTE), (150_000, HOUR)]);
        assert_eq!(corp_limits(&rules, "/cgi-bin/oa/approval/x"), [(600, MINUTE), (150_000, HOUR)]);
        assert_eq!(corp_limits(&rules, "/cgi-bin/security/member_oper_log/list")[0], (600, MINUTE));
        let scopes = rules.quotas_of("/cgi-bin/message/send", 0).scopes;
        let member = (QuotaScope::Member, vec![(30, MINUTE), (1000, HOUR)]);
        assert_eq!(scopes, [(QuotaScope::Agent, vec![(UNKNOWN_LIMIT, DAY)]), member]);
        let scopes = rules.quotas_of("/cgi-bin/webhook/send", 0).scopes;
        assert!(scopes.contains(&(QuotaScope::Credential, vec![(20, MINUTE)])));
    }

    #[test]
    fn configured_row_replaces_the_row_of_its_path_scope_and_window() {
        let rules = Rules::new(&[
            configured("/cgi-bin/*", QuotaScope::Corp, 40_000),
            configured("/cgi-bin/oa/*", QuotaScope::Corp, 300),
            configured("/cgi-bin/oa/applyevent", QuotaScope::Agent, 60),
        ]);
        assert_eq!(corp_limits(&rules, "/cgi-bin/user/get"), [(40_000, MINUTE), (150_000, HOUR)]);
        assert_eq!(corp_limits(&rules, "/cgi-bin/oa/applyevent")[0], (300, MINUTE), "the smaller one");
        let scopes = rules.quotas_of("/cgi-bin/oa/applyevent", 0).scopes;
        assert!(scopes.contains(&(QuotaScope::Agent, vec![(60, MINUTE)])));
    }
}
