//! What happens with an authorized request.

use std::sync::Arc;

use super::{query, response::Response};
use crate::{
    directory::Agent,
    wecom::provider_api::{self, ProviderToken},
};

/// What happens with an authorized request.
pub(super) enum Decision {
    /// The proxy responds itself.
    Respond(Response),
    /// The request is forwarded.
    Forward(TokenChoice),
    /// The body decides, or the response is not simply forwarded.
    Exchange(Exchange),
}

/// How a request is forwarded.
pub(super) struct TokenChoice {
    /// Whose token it gets; without one it is passthrough, and carries a credential of its own.
    pub(super) token_agent: Option<Arc<Agent>>,
    /// The parameter of a suite's or a provider's token; `None`: `access_token` of an agent.
    pub(super) token_param: Option<TokenParam>,
}

/// A call of a service provider's program for a token or a permanent code, or with one.
pub(super) enum Exchange {
    /// `get_provider_token` or `get_suite_token`, whose body has the client's key as the secret.
    FirstToken(ProviderToken),
    /// `get_corp_token` in the name of this suite.
    CorpToken(Arc<Agent>),
    /// `get_permanent_code` in the name of this suite, in its first or second version.
    PermanentCode { suite: Arc<Agent>, is_v2: bool },
    /// `get_auth_info` in the name of this suite.
    AuthInfo(Arc<Agent>),
}

/// The query parameter that carries the token of a suite or a provider.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct TokenParam {
    /// The name between `&` and `=`.
    appended: &'static str,
    token: ProviderToken,
}

impl TokenParam {
    /// The parameter of this token on a path, given below `/cgi-bin/`.
    pub(super) fn of(token: ProviderToken, api_path: &str) -> Self {
        let appended = match (token, token.param_on(api_path) == token.param()) {
            (ProviderToken::Suite, _) => "&suite_access_token=",
            (ProviderToken::Provider, true) => "&provider_access_token=",
            (ProviderToken::Provider, false) => "&access_token=",
        };
        Self { appended, token }
    }

    /// The name between `&` and `=`.
    pub(super) fn appended(self) -> &'static str {
        self.appended
    }

    /// The query without this parameter, and without passes in others that carry tokens.
    pub(super) fn removed_from(self, query: &str) -> String {
        let name = self.appended.trim_matches(['&', '=']);
        let query = query::without_param_and_passes(query, name);
        // Some programs send the token of `get_login_info` in the parameter of other calls.
        match name == self.token.param() {
            true => query,
            false => query::without_param_and_passes(&query, self.token.param()),
        }
    }
}

/// Whether a path, given below `/cgi-bin/`, takes the provider's token in `access_token`.
pub(super) fn takes_access_token(api_path: &str) -> bool {
    let token = ProviderToken::Provider;
    provider_api::wanted_token(api_path) == provider_api::WantedToken::Of(token)
        && token.param_on(api_path) != token.param()
}
