//! The parts of a request's way that `benches/` counts.

use std::{rc::Rc, sync::Arc};

use super::{
    identify,
    query::{may_hold_token, with_token, without_token},
    record::{Books, Record},
    request::Request,
    sign::{Ids, passed_on, sign},
    target::Target,
};
use crate::{
    directory::{Agent, Client, Directory},
    fields::{Block, Fields},
    tokens::Token,
};

/// Takes a target apart; how long its route is, where it leads somewhere.
pub fn route(path: &str, query: Option<&str>) -> Option<usize> {
    Target::parse(path, query).ok().map(|target| target.route.len())
}

/// Puts the agent's token into a query in place of the caller's; how long the target is.
pub fn rewrite(path: &str, query: &str, token: &str) -> usize {
    let query = if may_hold_token(query) { without_token(query) } else { query.into() };
    with_token(path, &query, token).map(str::len).into_iter().sum()
}

/// The client whose key the header lines show.
pub fn client_of_key(directory: &Directory, fields: &Fields) -> Option<Arc<Client>> {
    identify::by_key(directory, fields).ok().flatten()
}

/// The client whose pass the query shows.
pub fn client_of_pass(directory: &Directory, query: &str) -> Option<Arc<Client>> {
    identify::client_of_pass(directory, Some(query))
}

/// A request whose answers are signed.
pub struct Signer(Record);

impl Signer {
    /// A request that goes through this agent.
    pub fn new(request: &Request, agent: Arc<Agent>, books: Rc<Books>) -> Self {
        let mut record = Record::new(request, Ids::default().of(request), books);
        record.agent = Some(agent);
        Self(record)
    }

    /// The lines of an answer as they go to the caller.
    pub fn lines(&self, fields: &Fields, token: &Token) -> Block {
        let mut lines = passed_on(fields, Some(token));
        sign(&self.0, false, &mut lines);
        lines
    }
}
