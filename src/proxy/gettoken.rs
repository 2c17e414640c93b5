//! gettoken, answered here: a client's key, or an agent's real secret where that is allowed, buys a pass.

use std::{
    borrow::Cow,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use http::StatusCode;
use percent_encoding::percent_decode_str;

use super::{
    identify,
    record::Record,
    refusal::{Kind, Refusal},
    reply::Reply,
    target::Target,
};
use crate::{
    directory::{Agent, Client, Directory},
    fields::Fields,
    passes::CLAIMED_LIFE,
    secret::{Masked, wiped_bytes},
    wecom::errcode,
};

/// Answers as WeCom does, with a pass in place of a token. `shown` is the client whose key the headers show.
pub(super) fn answer(
    directory: &Directory,
    shown: Option<Arc<Client>>,
    target: &Target<'_>,
    fields: &Fields,
    record: &mut Record,
) -> Result<Reply, Refusal> {
    let query = target.query.unwrap_or_default();
    let corpid = parameter(query, "corpid");
    let corpsecret = parameter(query, "corpsecret").map(|secret| Masked::new(secret.into_owned()));
    let corpid = corpid.ok_or_else(|| refused(errcode::MISSING_CORPID, "corpid missing"))?;
    let corpsecret = corpsecret.ok_or_else(|| refused(errcode::MISSING_SECRET, "corpsecret missing"))?;

    let by_key = directory.client(corpsecret.expose()).cloned();
    if let (Some(shown), Some(by_key)) = (&shown, &by_key)
        && !Arc::ptr_eq(shown, by_key)
    {
        return Err(Refusal::new(
            Kind::BadRequest,
            "the request shows the keys of two clients; send only one",
        ));
    }
    let named = identify::named_agent(target, fields)?;
    let (client, agent) = match by_key {
        Some(client) => {
            record.client = Some(client.clone());
            let agent = agent_of_client(directory, &client, named, &corpid)?;
            (Some(client), agent)
        }
        None => {
            record.client.clone_from(&shown);
            let is_meant = |agent: &&Arc<Agent>| {
                named.is_none_or(|named| named == agent.name)
                    && shown.as_ref().is_none_or(|client| client.may_use(&agent.name))
            };
            let agent = directory.agents_by_secret(&corpid, corpsecret.expose()).find(is_meant).cloned();
            (shown, agent.ok_or_else(|| wrong(directory, &corpid))?)
        }
    };
    record.agent = Some(agent.clone());
    if let Some(client) = &client {
        identify::admit(client.limit.as_ref(), record.began, "this client")?;
    }
    let (name, key) = client.as_ref().map_or(("", None), |client| (client.name.as_str(), Some(&client.key)));
    let pass = agent.pass_key.issue(&agent.name, name, key, unix_now());
    record.errcode = Some(errcode::OK);
    Ok(granted(&pass))
}

/// Seconds since 1970.
pub(super) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The agent that a client means: the one it names, else the only one of this company that it may use.
fn agent_of_client(
    directory: &Directory,
    client: &Client,
    named: Option<&str>,
    corpid: &str,
) -> Result<Arc<Agent>, Refusal> {
    let unknown =
        || refused(errcode::INVALID_CORPID, "invalid corpid: this key has no agent of this company");
    if let Some(named) = named {
        let agent = directory.agent(named, Some(client)).ok_or_else(identify::unknown_agent)?;
        return if agent.corpid == corpid { Ok(agent.clone()) } else { Err(unknown()) };
    }
    let mut agents = directory.agents_of(corpid, client);
    let first = agents.next().ok_or_else(unknown)?;
    if agents.next().is_some() {
        let words = "this key has several agents of this company; put the agent's name first in the path (/NAME/cgi-bin/gettoken)";
        return Err(refused(errcode::INVALID_CORPID, words));
    }
    Ok(first.clone())
}

/// WeCom's own answer to a wrong secret or company.
fn wrong(directory: &Directory, corpid: &str) -> Refusal {
    if directory.knows_company(corpid) {
        refused(
            errcode::INVALID_SECRET,
            "invalid credential: corpsecret is neither a client's key nor a secret that is accepted here",
        )
        .of_wrong_key()
    } else {
        refused(errcode::INVALID_CORPID, "invalid corpid: no agent here is of this company").of_wrong_key()
    }
}

fn refused(errcode: i64, words: &str) -> Refusal {
    Refusal::new(Kind::GettokenRefused, words).with_errcode(errcode)
}

/// The answer that legacy programs take apart by position: this key order, no spaces.
fn granted(pass: &Masked) -> Reply {
    let life = CLAIMED_LIFE.as_secs();
    let start = r#"{"errcode":0,"errmsg":"ok","access_token":""#;
    // In one piece of memory, which is wiped.
    let body = [start, pass.expose(), &format!(r#"","expires_in":{life}}}"#)].concat();
    let mut reply = Reply::own(StatusCode::OK, wiped_bytes(body.into_bytes()));
    reply.lines.put(b"cache-control", b"no-store");
    reply
}

/// A parameter's value, decoded; `None` where it is absent or empty. A plus stays a plus: neither keys nor secrets hold
/// spaces, and many programs send them as they are.
fn parameter<'a>(query: &'a str, name: &str) -> Option<Cow<'a, str>> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let mut values =
        pairs.filter(|(key, _)| percent_decode_str(key).eq(name.bytes())).map(|(_, value)| value);
    let value = percent_decode_str(values.next()?).decode_utf8().ok()?;
    (!value.is_empty()).then_some(value)
}
