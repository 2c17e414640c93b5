//! The read-only call that checks a token. It needs no permission besides the token.

use std::{sync::Arc, time::Duration};

use serde_json::{Map, Value};
use tokio::time::timeout;

use super::problem::Problem;
use crate::{
    config::AgentConfig,
    format_text,
    secret::Masked,
    text,
    text::Text,
    tokens::fetch::GettokenClient,
    upstream::{Fetched, Settings, Upstream},
    wecom::response::{GettokenError, parse_ok_response},
};

/// Bounds the response's body: `agent/get` lists every member who may see the app.
const MAX_RESPONSE_BYTES: usize = 1024 * 1024;

/// The call that checks an agent's token.
pub(super) enum Probe {
    /// `agent/get`, which every app may call for itself. Fails if the agentid is another app's, if this address is not a
    /// trusted IP, or if the app is disabled.
    AgentGet(u64),
    /// `get_api_domain_ip`, which needs no agentid and no permission. It checks little more than the token.
    DomainIp,
}

impl Probe {
    pub(super) fn for_agent(agent: &AgentConfig) -> Self {
        agent.settings.agentid.map_or(Self::DomainIp, Self::AgentGet)
    }

    /// The call's name in WeCom's documentation.
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

    /// Sends the call with `token`.
    pub(super) async fn send(
        &self,
        upstream: &Upstream,
        corpid: &str,
        token: &Masked,
        call_timeout: Duration,
    ) -> Result<(), Problem> {
        let timed_out = |_| {
            let seconds = call_timeout.as_secs();
            Problem::NoResponse(format_text!("no response within {seconds} s", "{seconds} 秒内没有响应"))
        };
        let target = self.target(token);
        let fetched = timeout(call_timeout, upstream.fetch_buffered(corpid, &target, MAX_RESPONSE_BYTES))
            .await
            .map_err(timed_out)??;
        let response = parse_response(&fetched, token)?;
        match response.get("close").and_then(Value::as_i64) {
            Some(1) => Err(Problem::AppDisabled),
            _ => Ok(()),
        }
    }
}

/// The addresses from which WeCom pushes callbacks.
pub(super) async fn fetch_callback_addresses(
    settings: &Arc<Settings>,
    agent: &AgentConfig,
    token: &Masked,
) -> Result<Vec<String>, Problem> {
    let client = GettokenClient::new(settings.clone());
    let target = Masked::new(format!("/cgi-bin/getcallbackip?access_token={}", token.expose()));
    let fetched = client.upstream().fetch_buffered(&agent.corpid, &target, MAX_RESPONSE_BYTES);
    let timed_out = |_| Problem::NoResponse(text!("no response in time", "没有及时响应"));
    let response = parse_response(&timeout(client.timeout(), fetched).await.map_err(timed_out)??, token)?;
    let entries = response.get("ip_list").and_then(Value::as_array);
    let entries = entries.ok_or_else(|| Problem::InvalidResponse(text!("no ip_list", "没有 ip_list")))?;
    Ok(entries.iter().filter_map(|entry| Some(entry.as_str()?.to_owned())).collect())
}

fn parse_response(fetched: &Fetched, token: &Masked) -> Result<Map<String, Value>, Problem> {
    let status = fetched.status;
    let invalid = |reason: Text| {
        Problem::InvalidResponse(format_text!("HTTP {status}, {}", "HTTP {status}，{}", reason))
    };
    let body = fetched.body.as_ref().ok_or_else(|| invalid(text!("longer than 1 MiB", "超过 1 MiB")))?;
    match parse_ok_response(body) {
        Ok(response) if status == 200 => Ok(response),
        Ok(_) => Err(invalid(text!("without an errcode", "没有 errcode"))),
        // A gateway may echo the URL, and with it the token.
        Err(GettokenError::Refused { errcode, errmsg }) => {
            Err(Problem::Refused { errcode, errmsg: errmsg.replace(token.expose(), "[masked]") })
        }
        Err(_) => Err(invalid(text!("not JSON", "不是 JSON"))),
    }
}
