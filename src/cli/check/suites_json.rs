//! Providers and suites in the JSON of `check`.

use serde::Serialize;

use super::problem_json::{ProblemJson, problem_json};
use crate::{
    cli::online_check::{CommandUrlFinding, SuiteFinding, SuiteUrls, TicketFinding, TokenFinding},
    config::Config,
    text::{Language, Text},
};

/// A provider or suite, with the result of the online check.
#[derive(Serialize)]
pub(super) struct SuiteJson<'a> {
    name: &'a str,
    kind: &'static str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    provider: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    online: Option<SuiteResultJson<'a>>,
}

#[derive(Serialize)]
struct SuiteResultJson<'a> {
    ok: bool,
    token: &'static str,
    problem: Option<ProblemJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ticket: Option<TicketJson<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    callback: Option<&'static str>,
    took_ms: u128,
}

#[derive(Serialize)]
struct TicketJson<'a> {
    ok: bool,
    age_s: Option<u64>,
    trouble: Option<&'a str>,
    trouble_zh: Option<&'a str>,
}

/// The providers and suites of the file; `None` without any. The findings have the same order.
pub(super) fn suites_json<'a>(
    config: &'a Config,
    findings: Option<&'a [SuiteFinding]>,
) -> Option<Vec<SuiteJson<'a>>> {
    let providers = config.suites.providers.values();
    let providers = providers.map(|provider| (&*provider.name, "provider", &*provider.corpid, None));
    let suites = config.suites.suites.values();
    let suites = suites.map(|suite| (&*suite.name, "suite", &*suite.suite_id, suite.provider.as_deref()));
    let all = providers.chain(suites).enumerate().map(|(nth, (name, kind, id, provider))| {
        let online = findings.and_then(|findings| findings.get(nth)).map(result_json);
        SuiteJson { name, kind, id, provider, online }
    });
    let all: Vec<_> = all.collect();
    (!all.is_empty()).then_some(all)
}

fn result_json(finding: &SuiteFinding) -> SuiteResultJson<'_> {
    let (token, problem) = match &finding.token {
        TokenFinding::Passed => ("ok", None),
        TokenFinding::Failed(problem) => ("failed", Some(problem_json("gettoken", problem))),
        TokenFinding::Skipped => ("not-asked", None),
    };
    SuiteResultJson {
        ok: finding.is_ok(),
        token,
        problem,
        ticket: finding.suite.as_ref().map(|SuiteUrls { ticket, .. }| ticket_json(ticket)),
        callback: finding.suite.as_ref().map(|SuiteUrls { callback, .. }| match callback {
            CommandUrlFinding::Answers => "answers",
            CommandUrlFinding::NotRunning => "not-running",
            CommandUrlFinding::Refused(_) => "refused",
            CommandUrlFinding::NotChecked => "not-asked",
        }),
        took_ms: finding.duration.as_millis(),
    }
}

fn ticket_json(ticket: &TicketFinding) -> TicketJson<'_> {
    let (age_s, trouble) = match ticket {
        TicketFinding::Age(age) => (Some(age.as_secs()), None),
        TicketFinding::Missing => (None, None),
        TicketFinding::Unreadable(error) => (None, Some(error)),
    };
    TicketJson {
        ok: ticket.is_ok(),
        age_s,
        trouble: trouble.map(Text::english),
        trouble_zh: trouble.map(|error| error.get(Language::Chinese)),
    }
}
