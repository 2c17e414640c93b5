//! The call that tries a token. It only reads, and needs no right but the token itself.

use std::time::Duration;

use serde_json::{Map, Value};
use tokio::time::timeout;

use super::Problem;
use crate::{
    config::AgentConfig,
    secret::Masked,
    upstream::{Fetched, Upstream},
    wecom::response::{GettokenError, parse_ok_response},
};

/// Most bytes of an answer. An app lists who may see it, one by one.
const MAX_RESPONSE_BYTES: usize = 1024 * 1024;

/// Which call tries an agent's token.
pub(super) enum Probe {
    /// `agent/get`: every app may read itself. It fails where the agentid is another app's, where this address is not
    /// trusted, and where the app is closed.
    AgentGet(u64),
    /// `get_api_domain_ip`: no right is needed, and no app named. It tries little more than the token.
    DomainIp,
}

impl Probe {
    pub(super) fn for_agent(agent: &AgentConfig) -> Self {
        agent.agentid.map_or(Self::DomainIp, Self::AgentGet)
    }

    /// The call's name, as WeCom's documents have it.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::AgentGet(_) => "agent/get",
            Self::DomainIp => "get_api_domain_ip",
        }
    }

    fn target(&self, token: &Masked) -> Masked {
        let agentid = match self {
            Self::AgentGet(agentid) => format!("agentid={agentid}&"),
            Self::DomainIp => String::new(),
        };
        Masked::new(format!("/cgi-bin/{}?{agentid}access_token={}", self.name(), token.expose()))
    }

    /// Makes the call with `token`.
    pub(super) async fn send(
        &self,
        upstream: &Upstream,
        token: &Masked,
        patience: Duration,
    ) -> Result<(), Problem> {
        let late = |_| Problem::NoResponse(format!("no answer within {} s", patience.as_secs()));
        let whole = timeout(patience, upstream.fetch_buffered(&self.target(token), MAX_RESPONSE_BYTES))
            .await
            .map_err(late)??;
        let answer = parse_response(&whole, token)?;
        match answer.get("close").and_then(Value::as_i64) {
            Some(1) => Err(Problem::AppDisabled),
            _ => Ok(()),
        }
    }
}

fn parse_response(whole: &Fetched, token: &Masked) -> Result<Map<String, Value>, Problem> {
    let status = whole.status;
    let senseless =
        |what: &str| Problem::InvalidResponse(format!("it was answered with HTTP {status}, and {what}"));
    let body = whole.body.as_ref().ok_or_else(|| senseless("it is longer than 1 MiB"))?;
    match parse_ok_response(body) {
        Ok(answer) if status == 200 => Ok(answer),
        Ok(_) => Err(senseless("without an errcode")),
        // A gateway may say the URL back.
        Err(GettokenError::Refused { errcode, errmsg }) => {
            Err(Problem::Refused { errcode, errmsg: errmsg.replace(token.expose(), "[masked]") })
        }
        Err(_) => Err(senseless("it is not JSON")),
    }
}
