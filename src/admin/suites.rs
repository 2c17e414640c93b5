//! `/api/suites`: suites and providers; `/api/suites/NAME/corps`: the authorised corps of one;
//! `/api/suites/NAME/install-link`: the link under which an administrator of a corp installs it.

use std::sync::Arc;

use http::{Request, StatusCode};
use serde_json::{Value, json};

use super::{
    Admin,
    agent_list::ListQuery,
    agents::{agent_json, corp_row_json},
    error::{AdminResult, ApiError},
    query::parameter,
    response::json_response,
    trouble::Troubles,
};
use crate::{
    blocking,
    directory::{Agent, Directory, Suite},
    suites::{InstallLinkError, MAX_TICKET_AGE},
    time::clock::unix_now,
};

impl Admin {
    /// The response to a request for suites; `None` for any other path.
    pub(super) async fn handle_suites<B>(self: &Arc<Self>, request: &Request<B>) -> Option<AdminResult> {
        let rest = request.uri().path().strip_prefix("/api/suites")?;
        let (name, resource) = match rest.strip_prefix('/').map(|rest| rest.split_once('/')) {
            None if rest.is_empty() => ("", ""),
            Some(Some((name, resource @ ("corps" | "install-link")))) => (name, resource),
            _ => return None,
        };
        if !matches!(*request.method(), http::Method::GET | http::Method::HEAD) {
            return Some(Err(ApiError::method_not_allowed("GET, HEAD")));
        }
        if resource.is_empty() {
            return Some(self.list_suites().await);
        }
        let Some(agent) = self.settings.suites.suite_agent(name) else {
            return Some(Err(ApiError::not_found("there is no suite of this name")));
        };
        let query = request.uri().query();
        Some(match resource {
            "corps" => self.list_corps(agent, query).await,
            _ => self.install_link(&agent, query).await,
        })
    }

    /// Suites with the age of their ticket and the number of their corps, and providers; each with its token as an agent.
    async fn list_suites(self: &Arc<Self>) -> AdminResult {
        let directory = self.directory.load_full();
        // There can be very many corps.
        let list = move || json_response(StatusCode::OK, &suites_json(&directory));
        Ok(blocking::run_in_background(list).await?)
    }

    /// A page of the corps of a suite, each as `/api/agents` lists an agent.
    async fn list_corps(self: &Arc<Self>, agent: Arc<Agent>, query: Option<&str>) -> AdminResult {
        let query = ListQuery::parse(query).map_err(ApiError::bad_request)?;
        let (troubles, _) = self.collect().await?;
        let directory = self.directory.load_full();
        let response = blocking::run_in_background(move || {
            let troubles = Troubles::new(troubles);
            let page = agent.suite().map(|suite| query.page_of_corps(suite, &directory, &troubles));
            page.unwrap_or_default().response("corps", |corp| corp_row_json(corp, &directory))
        });
        Ok(response.await?)
    }

    async fn install_link(&self, agent: &Arc<Agent>, query: Option<&str>) -> AdminResult {
        let Some(redirect_uri) = parameter(query, "redirect_uri").filter(|uri| !uri.is_empty()) else {
            let message = "redirect_uri is missing: https://HOST/callbacks/NAME/authorized, of a domain that the console lists";
            return Err(ApiError::bad_request(message));
        };
        let state = parameter(query, "state").unwrap_or_default();
        let link = self.settings.suites.install_link(agent, &redirect_uri, &state, unix_now()).await;
        match link {
            Ok(link) => Ok(json_response(StatusCode::OK, &json!({ "url": link.expose() }))),
            Err(error @ InstallLinkError::State) => Err(ApiError::bad_request(error.to_string())),
            Err(InstallLinkError::Fetch(failure)) => {
                Err(ApiError::new(StatusCode::BAD_GATEWAY, failure.public_message()))
            }
        }
    }
}

fn suites_json(directory: &Directory) -> Value {
    let agents = directory.suites_and_providers().iter();
    let (suites, providers): (Vec<_>, Vec<_>) = agents.partition(|agent| agent.suite().is_some());
    let suites = suites.into_iter().filter_map(|agent| Some(suite_json(agent, agent.suite()?)));
    let providers = providers.into_iter().map(|agent| agent_json(agent));
    json!({ "suites": suites.collect::<Vec<_>>(), "providers": providers.collect::<Vec<_>>() })
}

/// A suite; its `corpid` is its suite_id.
fn suite_json(agent: &Agent, suite: &Suite) -> Value {
    let mut row = agent_json(agent);
    let age = suite.state.ticket.age();
    let CorpCounts { total, failing, refused } = CorpCounts::of(suite);
    row["suite_id"] = json!(suite.config.suite_id);
    row["provider"] = json!(suite.config.provider);
    row["customized"] = json!(suite.is_customized_template());
    row["ticket_age_seconds"] = json!(age.map(|age| age.as_secs()));
    row["ticket_late"] = json!(age.is_none_or(|age| age > MAX_TICKET_AGE));
    row["corps"] = json!(total);
    row["corps_failing"] = json!(failing);
    row["corps_refused"] = json!(refused);
    row["corps_cancelled"] = json!(suite.cancelled_corps().count());
    row
}

/// The authorised corps of a suite.
pub(super) struct CorpCounts {
    /// All of them.
    pub(super) total: usize,
    /// Those whose last fetch of a token failed.
    pub(super) failing: usize,
    /// Those of these whose permanent code WeCom refused: they withdrew their authorisation.
    pub(super) refused: usize,
}

impl CorpCounts {
    pub(super) fn of(suite: &Suite) -> Self {
        let corps = suite.corps();
        let mut counts = Self { total: corps.len(), failing: 0, refused: 0 };
        for failure in corps.iter().filter_map(|corp| corp.token.last_failure()) {
            counts.failing += 1;
            counts.refused += usize::from(failure.is_authorization_gone());
        }
        counts
    }
}
