//! The token of a suite: a third-party app, or a template of customized apps. Fetched with its id, its secret and the
//! newest suite_ticket, which WeCom pushes every ten minutes; without one that serves, it waits for the next push.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwapOption;
use serde_json::json;

use super::json_call::{self, JsonCall};
use crate::{
    secret::Masked,
    tokens::{Credentials, FetchError, FetchToken},
    upstream::Fetched,
    wecom::{provider_api, response::GettokenResponse},
};

/// Its kind in a `CredentialId`.
pub(in crate::tokens) const ID_KIND: &str = "suite";

/// The newest suite_ticket of one suite. It outlives reloads.
#[derive(Default)]
pub struct SuiteTicket(ArcSwapOption<ReceivedTicket>);

struct ReceivedTicket {
    value: Masked,
    received_at: SystemTime,
}

impl SuiteTicket {
    /// Sets the ticket that was received then, unless it is older than the present one. Returns whether it is another
    /// one.
    pub fn set(&self, value: Masked, received_at: SystemTime) -> bool {
        let current = self.0.load_full();
        if current.as_ref().is_some_and(|current| current.received_at > received_at) {
            return false;
        }
        let is_new = current.is_none_or(|current| current.value != value);
        self.0.store(Some(Arc::new(ReceivedTicket { value, received_at })));
        is_new
    }

    /// The time since the ticket was received; `None` without one.
    pub fn age(&self) -> Option<Duration> {
        self.0.load().as_ref().map(|ticket| ticket.received_at.elapsed().unwrap_or_default())
    }

    /// Calls `visit` with the ticket, for redaction.
    pub fn visit_value(&self, visit: &mut dyn FnMut(&str)) {
        if let Some(ticket) = &*self.0.load() {
            visit(ticket.value.expose());
        }
    }
}

/// Fetches a token once; once more if a newer ticket arrived while WeCom refused the older one.
pub(in crate::tokens) async fn fetch(
    fetcher: &dyn FetchToken,
    credentials: &Credentials,
    newest: &SuiteTicket,
) -> Result<GettokenResponse, FetchError> {
    let mut ticket = newest.0.load_full().ok_or(FetchError::NoTicket)?;
    loop {
        let fetched = fetcher.call(request(credentials, &ticket.value)).await;
        let fetched = fetched.and_then(|fetched| parse(credentials, &ticket.value, fetched));
        let next = newest.0.load_full().filter(|next| next.value != ticket.value);
        match (fetched, next) {
            (Err(failure), Some(next)) if provider_api::is_ticket_error(failure.errcode()) => ticket = next,
            (fetched, _) => return fetched,
        }
    }
}

/// The call for a token.
pub fn request(Credentials { corpid, secret, .. }: &Credentials, ticket: &Masked) -> JsonCall {
    let body = json!({
        "suite_id": corpid,
        "suite_secret": secret.expose(),
        "suite_ticket": ticket.expose(),
    });
    JsonCall::post(corpid, "/cgi-bin/service/get_suite_token", &body)
}

/// The token of its response.
pub fn parse(
    credentials: &Credentials,
    ticket: &Masked,
    fetched: Fetched,
) -> Result<GettokenResponse, FetchError> {
    json_call::token_of_response(fetched, "suite_access_token", &[&credentials.secret, ticket])
}
