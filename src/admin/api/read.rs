//! `GET` of agents and clients.

use http::{HeaderMap, StatusCode};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::super::{
    Admin,
    agents::cancelled_message,
    error::{AdminResult, ApiError},
    response::json_response,
};
use super::{
    entry::{EntryKind, agent_json, agent_tag, client_json, client_tag, corp_json},
    preconditions::{Evaluation, Preconditions},
    write::insert_tag,
};
use crate::{
    directory::{Agent, AgentRole},
    secret::hex,
};

impl Admin {
    /// One agent or client, as it is in force.
    pub(super) fn read_entry(&self, kind: EntryKind, name: &str, headers: &HeaderMap) -> AdminResult {
        let directory = self.directory.load();
        let entry = match kind {
            EntryKind::Agent => {
                let agent = directory.find_agent(name);
                agent.and_then(|agent| Some((entry_json(&agent)?, agent_tag(&agent))))
            }
            EntryKind::Client => {
                directory.client_by_name(name).map(|client| (client_json(&client.config), client_tag(client)))
            }
        };
        let cancelled = directory.find_cancelled_corp(name).filter(|_| kind == EntryKind::Agent);
        let (body, tag) = entry.ok_or_else(|| match directory.is_complete() {
            true => match cancelled {
                Some(corp) => ApiError::not_found(cancelled_message(corp).english()),
                None => kind.not_found(),
            },
            false => {
                ApiError::unavailable("the state cannot be read, so it is not known whether there is one")
            }
        })?;
        conditional_response(headers, &tag, || Value::Object(body))
    }

    /// All clients. Their entity tag changes with each of theirs.
    pub(super) fn read_clients(&self, headers: &HeaderMap) -> AdminResult {
        let directory = self.directory.load();
        let mut digest = Sha256::new();
        let clients = directory.clients().map(|client| {
            digest.update(format!("{} {}\n", client.config.name, client_tag(client)));
            let mut body = client_json(&client.config);
            body.insert("name".to_owned(), client.config.name.clone().into());
            Value::Object(body)
        });
        let body = json!({ "clients": clients.collect::<Vec<_>>() });
        let tag = hex::encode(&digest.finalize()[..16]);
        conditional_response(headers, &tag, || body)
    }
}

/// The table of an agent or an authorised corp; suites and providers are shown elsewhere.
fn entry_json(agent: &Agent) -> Option<Map<String, Value>> {
    match &agent.role {
        AgentRole::Application => Some(agent_json(&agent.config())),
        AgentRole::Corp { suite } => Some(corp_json((suite, &agent.corpid), &agent.settings, &agent.origin)),
        AgentRole::Suite(_) | AgentRole::Provider => None,
    }
}

fn conditional_response(headers: &HeaderMap, tag: &str, body: impl FnOnce() -> Value) -> AdminResult {
    let preconditions = Preconditions::from_headers(headers).map_err(ApiError::bad_request)?;
    let mut response = match preconditions.evaluate(Some(tag), true) {
        Evaluation::Proceed => json_response(StatusCode::OK, &body()),
        Evaluation::NotModified => {
            let mut response = super::write::no_content();
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response
        }
        Evaluation::Failed => {
            return Err(ApiError::new(
                StatusCode::PRECONDITION_FAILED,
                "If-Match does not hold: it was changed",
            ));
        }
    };
    insert_tag(response.headers_mut(), tag);
    Ok(response)
}
