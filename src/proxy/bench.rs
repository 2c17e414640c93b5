//! Entry points for the instruction counts in `benches/`.

use std::{rc::Rc, sync::Arc};

use super::{
    authenticate,
    initial_response_headers::headers_for_client,
    query::{may_contain_token, with_token, without_token},
    request::Request,
    request_context::{RequestContext, Sinks},
    request_id::RequestIds,
    response_headers::add_proxy_headers,
    target::ParsedTarget,
};
use crate::{
    directory::{Agent, Client, Directory},
    http1::headers::{HeaderBlock, Headers},
    tokens::Token,
};

/// Parses a target; returns the length of its normalized path, or `None` for an invalid one.
pub fn parse_target(path: &str, query: Option<&str>) -> Option<usize> {
    ParsedTarget::parse(path, query).ok().map(|target| target.normalized_path.len())
}

/// Replaces the token in a query; returns the length of the target.
pub fn inject_token(path: &str, query: &str, token: &str) -> usize {
    let query = if may_contain_token(query) { without_token(query) } else { query.into() };
    with_token(path, &query, token).map(str::len).into_iter().sum()
}

/// The client whose key the headers contain.
pub fn key_client(directory: &Directory, headers: &Headers) -> Option<Arc<Client>> {
    authenticate::authenticate_key(directory, headers).ok().flatten()
}

/// The client whose pass the query contains.
pub fn pass_client(directory: &Directory, query: &str) -> Option<Arc<Client>> {
    authenticate::pass_client(directory, Some(query))
}

/// A request context that response headers are built for.
pub struct ResponseHeaderBench(RequestContext);

impl ResponseHeaderBench {
    /// The context of a request to this agent.
    pub fn new(request: &Request, agent: Arc<Agent>, sinks: Rc<Sinks>) -> Self {
        let mut context = RequestContext::new(request, RequestIds::default().assign(request), sinks);
        context.agent = Some(agent);
        Self(context)
    }

    /// Builds the headers of a response as sent to the client.
    pub fn build_headers(&self, upstream_headers: &Headers, token: &Token) -> HeaderBlock {
        let mut headers = headers_for_client(upstream_headers, Some(token));
        add_proxy_headers(&self.0, false, &mut headers);
        headers
    }
}
