//! What `benches/` measures.

use std::{rc::Rc, sync::Arc};

use super::{
    authenticate,
    initial_response_headers::headers_for_client,
    request::Request,
    request_context::{RequestContext, Sinks},
    request_id::RequestIds,
    response_headers::add_proxy_headers,
};
use crate::{
    directory::{Agent, Client, Directory},
    http1::headers::{HeaderBlock, Headers},
    tokens::Token,
};

/// The client whose key the headers contain.
pub fn key_client(directory: &Directory, headers: &Headers) -> Option<Arc<Client>> {
    authenticate::authenticate_key(directory, headers, None).ok().flatten()
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
