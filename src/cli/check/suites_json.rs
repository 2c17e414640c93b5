//! Providers and suites in the JSON of `check`.

use serde_json::{Value, json};

use super::problem_json::{object, problem_json};
use crate::{
    cli::online_check::{CommandUrlFinding, SuiteFinding, SuiteUrls, TicketFinding, TokenFinding},
    config::Config,
    text::{Language, Text},
};

/// The providers and suites of the file, with the results of the online check; `None` without any. The findings have the
/// same order.
pub(super) fn suites_json(config: &Config, findings: Option<&[SuiteFinding]>) -> Option<Vec<Value>> {
    let providers = config.suites.providers.values();
    let providers = providers.map(|provider| (&*provider.name, "provider", &*provider.corpid, None));
    let suites = config.suites.suites.values();
    let suites = suites.map(|suite| (&*suite.name, "suite", &*suite.suite_id, suite.provider.as_deref()));
    let all = providers.chain(suites).enumerate().map(|(nth, (name, kind, id, provider))| {
        let online = findings.and_then(|findings| findings.get(nth)).map(result_json);
        object(
            json!({ "name": name, "kind": kind, "id": id }),
            json!({ "provider": provider, "online": online }),
        )
    });
    let all: Vec<_> = all.collect();
    (!all.is_empty()).then_some(all)
}

fn result_json(finding: &SuiteFinding) -> Value {
    let (token, problem) = match &finding.token {
        TokenFinding::Passed => ("ok", None),
        TokenFinding::Failed(problem) => ("failed", Some(problem_json("gettoken", problem))),
        TokenFinding::Skipped => ("not-asked", None),
    };
    let took_ms = finding.duration.as_millis() as u64;
    let always = json!({ "ok": finding.is_ok(), "token": token, "problem": problem, "took_ms": took_ms });
    let Some(SuiteUrls { ticket, callback }) = &finding.suite else { return always };
    let callback = match callback {
        CommandUrlFinding::Answers => "answers",
        CommandUrlFinding::NotRunning => "not-running",
        CommandUrlFinding::Refused(_) => "refused",
        CommandUrlFinding::NotChecked => "not-asked",
    };
    object(always, json!({ "ticket": ticket_json(ticket), "callback": callback }))
}

fn ticket_json(ticket: &TicketFinding) -> Value {
    let (age_s, trouble) = match ticket {
        TicketFinding::Age(age) => (Some(age.as_secs()), None),
        TicketFinding::Missing => (None, None),
        TicketFinding::Unreadable(error) => (None, Some(error)),
    };
    json!({
        "ok": ticket.is_ok(),
        "age_s": age_s,
        "trouble": trouble.map(Text::english),
        "trouble_zh": trouble.map(|error| error.get(Language::Chinese)),
    })
}
