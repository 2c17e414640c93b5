//! The members that a message goes to. WeCom drops what one application sends to one member beyond a limit, without an
//! errcode.

use super::{
    Proxy,
    errcode_probe::ProbedResponse,
    error::ProxyError,
    message_body::{self, MAX_BODY_BYTES, MessageBody},
    quota::counted_call,
    request::Request,
    request_context::RequestContext,
    response_headers::wants_hint,
    small_body::{self, SmallBody},
};
use crate::{
    config::QuotaMode,
    http1::headers::HeaderKind,
    limits::quotas::MembersBeyond,
    request_body::RequestBody,
    wecom::{errcode, quotas::MESSAGE_SEND},
};

impl Proxy {
    /// Keeps a copy of a message that is to be sent by POST, in `context.message_body`.
    pub(super) async fn tap_recipients(
        &self,
        request: &Request,
        body: RequestBody,
        context: &mut RequestContext,
    ) -> Result<RequestBody, ProxyError> {
        if !self.has_limited_recipients(request) {
            return Ok(body);
        }
        let body = match body {
            // Whether it may be sent is known only with its members. With a key it is read to its end anyway.
            RequestBody::Streamed(_)
                if self.quotas.mode() == QuotaMode::Shape
                    && !request.headers.contains(HeaderKind::IdempotencyKey) =>
            {
                match Box::pin(small_body::read(body, MAX_BODY_BYTES)).await? {
                    SmallBody::Whole(bytes) => RequestBody::Complete(bytes),
                    SmallBody::Larger(body) => return Ok(body),
                }
            }
            body => body,
        };
        let (body, message) = message_body::copied(body, &self.settings.replay_budget);
        context.message_body = message;
        Ok(body)
    }

    fn has_limited_recipients(&self, request: &Request) -> bool {
        let path = request.target.normalized_path();
        self.quotas.mode() != QuotaMode::Off
            && (path == MESSAGE_SEND || self.quotas.limits_members() && self.quotas.has_member_limit(path))
    }

    /// In the mode `observe`, counts the members of a message that WeCom accepted, and tells a client that asks for hints
    /// if it will not reach some.
    pub(super) fn count_recipients(
        &self,
        message: MessageBody,
        request: &Request,
        response: &ProbedResponse,
        context: &mut RequestContext,
    ) {
        if response.errcode != Some(errcode::OK) || self.quotas.mode() != QuotaMode::Observe {
            return;
        }
        let message = message.into_bytes();
        let Some(touser) = message_body::touser(&message) else { return };
        let call = counted_call(&request.target, true, context);
        let beyond = self.quotas.count_members(&call, &message_body::members(&touser));
        context.recipients_hint = beyond.filter(|_| wants_hint(request)).map(|beyond| hint(&beyond));
    }
}

fn hint(MembersBeyond { count, first, limit, per }: &MembersBeyond<'_>) -> String {
    let is_printable = first.bytes().all(|byte| byte.is_ascii_graphic());
    let example = if is_printable { format!(" ({first})") } else { String::new() };
    format!(
        "WeCom probably drops this message for {count} member(s){example} without an errcode: one application may send one \
         member {limit} messages a {per}"
    )
}
