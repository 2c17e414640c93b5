//! Agents and clients at run time: `/api/agents/NAME`, `/api/clients`, `/api/clients/NAME` and its keys.

mod corps;
mod current;
mod entry;
mod key_claims;
mod keys;
mod merge_patch;
mod preconditions;
mod read;
mod request;
mod verify;
mod write;

use std::sync::Arc;

use http::{HeaderMap, Method, Request, StatusCode};
use hyper::body::Incoming;

use self::{
    entry::EntryKind,
    keys::KeyChange,
    request::{WriteOptions, check_content_type, read_body},
    write::{Change, EntryWrite},
};
pub(super) use self::{
    preconditions::{Evaluation, Preconditions},
    request::Resource,
};
use super::{
    Admin,
    error::{AdminResult, ApiError},
    guard,
};
use crate::{config::JsonTable, state::State};

const NO_STATE: &str = "this needs [state] in the configuration, where agents and clients made here are kept; write [state] with path = \
                        \"/var/lib/wecom-proxy/state.db\" and key = { env = \"WECOM_PROXY_STATE_KEY\" }";

impl Admin {
    /// Carries out a request for an agent, a client or its keys.
    pub(super) async fn serve_api(
        self: Arc<Self>,
        resource: Resource,
        request: Request<Incoming>,
    ) -> AdminResult {
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        guard::check_same_origin(&request)?;
        match is_read {
            true => guard::authorize(&self.keys, &request)?,
            false => guard::authorize_write(&self.keys, &request)?,
        }
        if !resource.allows(request.method()) {
            return Err(ApiError::method_not_allowed(resource.methods()));
        }
        match is_read {
            true => self.read_resource(&resource, request.headers()),
            false => self.write_resource(resource, request).await,
        }
    }

    fn read_resource(&self, resource: &Resource, headers: &HeaderMap) -> AdminResult {
        match resource {
            Resource::Agent(name) => self.read_entry(EntryKind::Agent, name, headers),
            Resource::Client(name) => self.read_entry(EntryKind::Client, name, headers),
            _ => self.read_clients(headers),
        }
    }

    async fn write_resource(&self, resource: Resource, request: Request<Incoming>) -> AdminResult {
        let state = self.state.as_ref().ok_or_else(|| ApiError::new(StatusCode::CONFLICT, NO_STATE))?;
        let (head, body) = request.into_parts();
        check_content_type(&head.method, &head.headers, &body)?;
        match &resource {
            Resource::Agent(name) => self.write_entry_of(state, (EntryKind::Agent, name), &head, body).await,
            Resource::Client(name) => {
                self.write_entry_of(state, (EntryKind::Client, name), &head, body).await
            }
            Resource::Keys(name) => self.write_keys(state, name, &KeyChange::Create, &head).await,
            Resource::Key(name, id) => self.write_keys(state, name, &KeyChange::Delete(id), &head).await,
            Resource::Clients => {
                Err(ApiError::bad_request("clients are made one by one, at /api/clients/NAME"))
            }
        }
    }

    async fn write_keys(
        &self,
        state: &State,
        name: &str,
        change: &KeyChange<'_>,
        head: &http::request::Parts,
    ) -> AdminResult {
        if head.uri.query().is_some_and(|query| !query.is_empty()) {
            return Err(ApiError::bad_request("there are no parameters here"));
        }
        let preconditions = Preconditions::from_headers(&head.headers).map_err(ApiError::bad_request)?;
        self.change_keys(state, name, change, &preconditions).await
    }

    async fn write_entry_of(
        &self,
        state: &State,
        (kind, name): (EntryKind, &str),
        head: &http::request::Parts,
        body: Incoming,
    ) -> AdminResult {
        let options = WriteOptions::from_query(head.uri.query())?;
        if options.verify && (kind == EntryKind::Client || head.method == Method::DELETE) {
            return Err(ApiError::bad_request(
                "verify fetches a token of an agent; use it with PUT or PATCH of one",
            ));
        }
        let preconditions = Preconditions::from_headers(&head.headers).map_err(ApiError::bad_request)?;
        let change = match head.method {
            Method::DELETE => Change::Delete,
            _ => {
                let table = JsonTable::parse(&read_body(body).await?);
                let table = table
                    .map_err(|error| ApiError::bad_request(format!("the body is not valid: {error}")))?;
                if head.method == Method::PATCH { Change::Patch(table) } else { Change::Put(table) }
            }
        };
        let write = EntryWrite { kind, name, change, preconditions, options };
        self.write_entry(state, &write).await
    }
}
