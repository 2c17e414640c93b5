//! The parts of a request's way that `benches/` counts.

use std::{rc::Rc, sync::Arc};

use super::{
    authenticate,
    query::{may_contain_token, with_token, without_token},
    request::Request,
    request_context::{RequestContext, Sinks},
    response_headers::{RequestIds, add_proxy_headers, forwarded_headers},
    target::ParsedTarget,
};
use crate::{
    directory::{Agent, Client, Directory},
    http1::headers::{HeaderBlock, Headers},
    tokens::Token,
};

/// Takes a target apart; how long its route is, where it leads somewhere.
pub fn parse_target(path: &str, query: Option<&str>) -> Option<usize> {
    ParsedTarget::parse(path, query).ok().map(|target| target.normalized_path.len())
}

/// Puts the agent's token into a query in place of the caller's; how long the target is.
pub fn inject_token(path: &str, query: &str, token: &str) -> usize {
    let query = if may_contain_token(query) { without_token(query) } else { query.into() };
    with_token(path, &query, token).map(str::len).into_iter().sum()
}

/// The client whose key the header lines show.
pub fn key_client(directory: &Directory, fields: &Headers) -> Option<Arc<Client>> {
    authenticate::authenticate_key(directory, fields).ok().flatten()
}

/// The client whose pass the query shows.
pub fn pass_client(directory: &Directory, query: &str) -> Option<Arc<Client>> {
    authenticate::pass_client(directory, Some(query))
}

/// A request whose answers are signed.
pub struct ResponseHeaderBench(RequestContext);

impl ResponseHeaderBench {
    /// A request that goes through this agent.
    pub fn new(request: &Request, agent: Arc<Agent>, books: Rc<Sinks>) -> Self {
        let mut record = RequestContext::new(request, RequestIds::default().assign(request), books);
        record.agent = Some(agent);
        Self(record)
    }

    /// The lines of an answer as they go to the caller.
    pub fn build_headers(&self, fields: &Headers, token: &Token) -> HeaderBlock {
        let mut lines = forwarded_headers(fields, Some(token));
        add_proxy_headers(&self.0, false, &mut lines);
        lines
    }
}
