//! Tickets. Each is fetched with the agent's access_token by the first request for it, and no errcode voids it: it ends
//! with its lifetime.

/// The requests that are answered with a ticket.
const KINDS: [Kind; TicketKind::COUNT] = [
    // The company's.
    Kind { id_kind: "jsapi", path: "/cgi-bin/get_jsapi_ticket", parameter: None },
    // The application's.
    Kind { id_kind: "agent_config", path: "/cgi-bin/ticket/get", parameter: Some("type=agent_config") },
];

struct Kind {
    /// Its kind in a `CredentialId`. Replicas of two versions must agree on it.
    id_kind: &'static str,
    path: &'static str,
    /// The only query parameter, beside the access_token.
    parameter: Option<&'static str>,
}

/// A kind of ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TicketKind(usize);

impl TicketKind {
    /// How many there are.
    pub(in crate::tokens) const COUNT: usize = 2;

    /// All kinds.
    pub(in crate::tokens) const ALL: [Self; Self::COUNT] = [Self::JSAPI, Self::AGENT_CONFIG];

    /// The company's, for `wx.config`.
    pub const JSAPI: Self = Self(0);
    /// The application's, for `wx.agentConfig`.
    pub const AGENT_CONFIG: Self = Self(1);

    /// Path and query of the request for it.
    pub fn target(self) -> String {
        let Kind { path, parameter, .. } = &KINDS[self.0];
        parameter.map_or_else(|| (*path).to_owned(), |parameter| format!("{path}?{parameter}"))
    }

    /// The ticket that a GET of this path requests, if `query`, which has no access_token, requests nothing else.
    pub fn of_request<Q: AsRef<str>>(path: &str, query: impl FnOnce() -> Q) -> Option<Self> {
        let index = KINDS.iter().position(|kind| kind.path == path)?;
        let query = query();
        let parameters = query.as_ref().split('&').filter(|parameter| !parameter.is_empty());
        parameters.eq(KINDS[index].parameter).then_some(Self(index))
    }

    /// Its index, below [`Self::COUNT`].
    pub(in crate::tokens) fn index(self) -> usize {
        self.0
    }

    /// Its kind in a `CredentialId`.
    pub(in crate::tokens) fn id_kind(self) -> &'static str {
        KINDS[self.0].id_kind
    }
}
