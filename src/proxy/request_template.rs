//! What both attempts of a request have in common.

use std::{borrow::Cow, cell::Cell, sync::atomic::AtomicBool};

use http::Method;

use super::{decision::TokenParam, query, request::Request, target::RequestTarget};
use crate::{http1::headers::Headers, tokens::kinds::access_token::APPENDED_PARAM, upstream::BodyLength};

/// What both attempts of a request have in common. Each attempt makes an `UpstreamRequest` from it, with a token in the
/// target.
pub(super) struct RequestTemplate<'a> {
    pub(super) method: &'a Method,
    /// The client's headers, unfiltered.
    pub(super) headers: &'a Headers,
    pub(super) target: &'a RequestTarget,
    /// The parameter of a suite's or a provider's token; `None`: `access_token` of an agent.
    pub(super) token_param: Option<TokenParam>,
    pub(super) body_length: BodyLength,
    /// See [`super::Request::waiting`].
    pub(super) waiting: &'a Cell<bool>,
    /// The index of the agent's upstream.
    pub(super) upstream: usize,
    /// Set while something of the request may be at the upstream, if it must not be sent twice.
    pub(super) maybe_sent: Option<&'a AtomicBool>,
}

impl<'a> RequestTemplate<'a> {
    /// The template of a request as it was received.
    #[inline]
    pub(super) fn new(
        request: &'a Request,
        token_param: Option<TokenParam>,
        body_length: BodyLength,
        upstream: usize,
    ) -> Self {
        Self {
            method: &request.method,
            headers: &request.headers,
            target: &request.target,
            token_param,
            body_length,
            waiting: &request.waiting,
            upstream,
            maybe_sent: None,
        }
    }

    /// The query without the parameter that carries the token.
    #[inline]
    pub(super) fn query_without_token(&self) -> Cow<'_, str> {
        query_without_token(self.target, self.token_param)
    }

    /// Parts of the target with the token, to concatenate.
    #[inline]
    pub(super) fn target_with_token<'b>(&'b self, query: &'b str, token: &'b str) -> [&'b str; 5] {
        let appended = self.token_param.map_or(APPENDED_PARAM, TokenParam::appended);
        query::with_token_in(self.target.upstream_path(), query, appended, token)
    }
}

/// The query without the parameter that carries the token.
#[inline]
pub(super) fn query_without_token(target: &RequestTarget, token_param: Option<TokenParam>) -> Cow<'_, str> {
    match token_param {
        None => target.query_without_token(),
        Some(param) => param.removed_from(target.query().unwrap_or_default()).into(),
    }
}
