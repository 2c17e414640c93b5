//! Authorisation of a corp: an auth_code is exchanged for the permanent code, once, and that is kept.

use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use dashmap::DashMap;
use serde_json::{Value, json};
use tokio::{sync::OnceCell, time::sleep};

use super::{
    Suites,
    records::{
        CancellationRecord, CorpRecord, FileCode, RedeemedRecord, corp_record_name, encode, hash_name,
    },
};
use crate::{
    config::{self, KeyHash},
    directory::{Agent, Suite},
    secret::Masked,
    state::{Collection, Precondition, ReadError, Record, Write, WriteError},
    time::clock::unix_now,
    tokens::{
        FetchError, PathKey,
        kinds::json_call::{JsonCall, call_error, call_with_suite_token},
    },
    wecom::response::parse_ok_response,
};

/// How long the result of an exchange is kept for callers with the same auth_code.
const RECENT_TTL: Duration = Duration::from_secs(10 * 60);
/// How long a replica may take to redeem an auth_code, before another one tries.
const CLAIM_TTL: Duration = Duration::from_secs(180);
/// How often the result of another replica is looked for.
const CLAIM_POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How often a write is tried again because another one came first.
const MAX_KEEP_ATTEMPTS: usize = 16;
/// Results that are searched for those of a corp.
const MAX_SEARCHED: usize = 10_000;

static PATH_KEY: LazyLock<PathKey> =
    LazyLock::new(|| PathKey::from_path("/cgi-bin/service/get_permanent_code"));

/// The version of the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedeemVersion {
    /// `service/get_permanent_code`
    V1,
    /// `service/v2/get_permanent_code`
    V2,
}

impl RedeemVersion {
    fn path(self) -> &'static str {
        match self {
            Self::V1 => "/cgi-bin/service/get_permanent_code",
            Self::V2 => "/cgi-bin/service/v2/get_permanent_code",
        }
    }
}

/// A redeemed auth_code. No `Debug`: it contains the permanent code.
pub struct Redeemed {
    /// WeCom's response, with the permanent code.
    pub body: Masked,
    /// The corp's corpid.
    pub corpid: String,
    /// The permanent code.
    pub permanent_code: Masked,
    /// The token that the first version of the call returns for a third-party app.
    pub access_token: Option<Masked>,
    agentid: Option<u64>,
    /// Whether the permanent code is in the state.
    is_kept: AtomicBool,
}

/// Why an auth_code was not redeemed.
#[derive(Debug, thiserror::Error)]
pub enum AuthorizeError {
    /// WeCom refused it, or could not be asked.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The response has no permanent code.
    #[error("the response has no usable permanent code: {0}")]
    Invalid(&'static str),
    /// The permanent code could not be kept; another attempt with the same auth_code within 10 minutes keeps it.
    #[error("the permanent code could not be kept: {0}")]
    State(#[from] WriteError),
}

/// The auth_codes redeemed lately, by suite and hash.
pub(super) type RecentCodes = DashMap<String, (Instant, Arc<OnceCell<Arc<Redeemed>>>)>;

impl Suites {
    /// Redeems an auth_code in the name of a suite, once however often and in however many replicas it is called with
    /// the same one, and keeps the permanent code. On success it is durable, and the corp can be called. Runs to its end
    /// even if the caller goes: what WeCom has returned cannot be read a second time.
    pub async fn authorize(
        self: &Arc<Self>,
        suite_agent: &Arc<Agent>,
        auth_code: &Masked,
        version: RedeemVersion,
    ) -> Result<Arc<Redeemed>, AuthorizeError> {
        let Some(context) = self.context.get() else { return Err(not_started()) };
        let (suites, agent, code) = (self.clone(), suite_agent.clone(), auth_code.clone());
        let task = context.runtime.spawn(async move { suites.authorize_once(&agent, &code, version).await });
        task.await.unwrap_or(Err(AuthorizeError::Fetch(FetchError::Cancelled)))
    }

    async fn authorize_once(
        &self,
        suite_agent: &Arc<Agent>,
        auth_code: &Masked,
        version: RedeemVersion,
    ) -> Result<Arc<Redeemed>, AuthorizeError> {
        let Some(suite) = suite_agent.suite() else { return Err(AuthorizeError::Invalid("no suite")) };
        self.recent_codes.retain(|_, recent| recent.0.elapsed() < RECENT_TTL);
        let name = redeemed_name(suite, auth_code);
        let cell = self
            .recent_codes
            .entry(name.clone())
            .or_insert_with(|| (Instant::now(), Arc::default()))
            .1
            .clone();
        let redeemed =
            cell.get_or_try_init(|| self.claim_and_redeem(suite_agent, auth_code, &name, version)).await;
        let redeemed = match redeemed {
            Ok(redeemed) => redeemed.clone(),
            Err(error) => {
                self.recent_codes.remove_if(&name, |_, recent| !recent.1.initialized());
                return Err(error);
            }
        };
        if !redeemed.is_kept.load(Ordering::Acquire) {
            self.keep(suite, &name, &redeemed).await?;
            redeemed.is_kept.store(true, Ordering::Release);
        }
        Ok(redeemed)
    }

    /// Redeems an auth_code that no replica is redeeming, or returns the result of the one that has.
    async fn claim_and_redeem(
        &self,
        suite_agent: &Arc<Agent>,
        auth_code: &Masked,
        name: &str,
        version: RedeemVersion,
    ) -> Result<Arc<Redeemed>, AuthorizeError> {
        let claim_version = loop {
            if let Some(redeemed) = self.find_redeemed(suite_agent, name).await? {
                return Ok(redeemed);
            }
            let claim = redeemed_write(name, &Masked::new(""), CLAIM_TTL).when(Precondition::Absent);
            match self.write(vec![claim]).await {
                Ok(version) => break version,
                Err(WriteError::Conflict { .. }) => sleep(CLAIM_POLL_INTERVAL).await,
                Err(error) => return Err(error.into()),
            }
        };
        let redeemed = redeem(suite_agent, auth_code, version).await;
        if redeemed.is_err() {
            // Another replica that has redeemed it since, after this claim had ended, keeps its result.
            let delete = Write::delete(Collection::RedeemedCodes, name);
            let _ = self.write(vec![delete.when(Precondition::Version(claim_version))]).await;
        }
        redeemed
    }

    /// The result of the replica that has redeemed an auth_code.
    async fn find_redeemed(
        &self,
        suite_agent: &Agent,
        name: &str,
    ) -> Result<Option<Arc<Redeemed>>, AuthorizeError> {
        let found = self.read(Collection::RedeemedCodes, name).await.map_err(unavailable)?;
        let parsed = found.and_then(|record| RedeemedRecord::parse(&record));
        let Some(body) = parsed.map(|record| record.body).filter(|body| !body.expose().is_empty()) else {
            return Ok(None);
        };
        let redeemed = parse_redeemed(body.expose().as_bytes().to_vec(), &[], true)?;
        if let Some(suite) = suite_agent.suite() {
            let corp = corp_record_name(&suite.config.suite_id, &redeemed.corpid);
            let corp = self.read(Collection::Corps, &corp).await.map_err(unavailable)?;
            corp.iter().for_each(|corp| self.apply_newer_corp(corp));
        }
        Ok(Some(Arc::new(redeemed)))
    }

    /// Writes the permanent code, unless the corp has it already, and WeCom's response for other replicas. What passes
    /// are made under stays.
    async fn keep(&self, suite: &Suite, redeemed_name: &str, redeemed: &Redeemed) -> Result<(), WriteError> {
        let name = corp_record_name(&suite.config.suite_id, &redeemed.corpid);
        let code = &redeemed.permanent_code;
        for _ in 0..MAX_KEEP_ATTEMPTS {
            let record = self.read(Collection::Corps, &name).await.map_err(unavailable)?;
            let version = record.as_ref().map(|record| record.version);
            let known = record.and_then(|record| CorpRecord::parse(&record.value?, record.version));
            let file = self.file_code(suite, &redeemed.corpid).await?;
            let next = CorpRecord::renewed(known, code.clone(), redeemed.agentid, file.as_ref())
                .map_err(|error| WriteError::Unavailable(error.to_string()))?;
            let precondition = version.map_or(Precondition::Absent, Precondition::Version);
            let put = Write::put(Collection::Corps, name.clone(), encode(&next)).when(precondition);
            let result = redeemed_write(redeemed_name, &redeemed.body, RECENT_TTL);
            let is_cancelled = file.is_some_and(|file| file.is_cancelled);
            let end = is_cancelled.then(|| Write::delete(Collection::CancelledCorps, name.clone()));
            match self.write([put, result].into_iter().chain(end).collect()).await {
                Err(WriteError::Conflict { .. }) => {}
                Err(error) => return Err(error),
                Ok(_) => {
                    report_authorized(suite, redeemed);
                    return Ok(());
                }
            }
        }
        Err(WriteError::Unavailable("the corp is changed by others all the time".to_owned()))
    }

    /// What is known of the permanent code that the file has for a corp.
    async fn file_code(&self, suite: &Suite, corpid: &str) -> Result<Option<FileCode>, WriteError> {
        let Some((hash, generation)) = suite.named_code(corpid) else { return Ok(None) };
        let name = corp_record_name(&suite.config.suite_id, corpid);
        let record = self.read(Collection::CancelledCorps, &name).await.map_err(unavailable)?;
        let known =
            record.and_then(|record| CancellationRecord::parse(record.value.as_ref()?, record.version));
        let is_cancelled = known.is_some_and(|known| KeyHash::from_hex(&known.file_code) == Some(hash));
        Ok(Some(FileCode { hash, generation, is_cancelled }))
    }

    /// The writes that delete what was returned for the auth_codes of a corp.
    pub(super) async fn redeemed_deletions(&self, suite: &Suite, corpid: &str) -> Vec<Write> {
        let Some(context) = self.context.get() else { return Vec::new() };
        let prefix = format!("{}/", suite.config.suite_id);
        let found = context.state.scan(Collection::RedeemedCodes, &prefix, "", MAX_SEARCHED).await;
        let is_of_corp = |record: &Record| {
            let body = RedeemedRecord::parse(record).map(|record| record.body);
            let parsed =
                body.and_then(|body| parse_redeemed(body.expose().as_bytes().to_vec(), &[], true).ok());
            parsed.is_some_and(|redeemed| redeemed.corpid == corpid)
        };
        let found = found.unwrap_or_default().into_iter().filter(is_of_corp);
        found.map(|record| Write::delete(Collection::RedeemedCodes, record.name)).collect()
    }

    /// Forgets what was returned for the auth_codes of a corp.
    pub(super) fn forget_redeemed(&self, suite_id: &str, corpid: &str) {
        self.recent_codes.retain(|name, (_, cell)| {
            let is_of_suite = name.strip_prefix(suite_id).is_some_and(|rest| rest.starts_with('/'));
            !(is_of_suite && cell.get().is_some_and(|redeemed| redeemed.corpid == corpid))
        });
    }
}

fn report_authorized(suite: &Suite, redeemed: &Redeemed) {
    tracing::info!(agent = suite.name(), corpid = redeemed.corpid, "corp authorised the suite");
    if suite.is_file_corp(&redeemed.corpid) {
        tracing::warn!(
            agent = suite.name(),
            corpid = redeemed.corpid,
            "corp has a newer permanent code than the file, and it is in force from now on; take the corp out of the file, \
             where another value would replace it"
        );
    }
}

fn redeemed_name(suite: &Suite, auth_code: &Masked) -> String {
    format!("{}/{}", suite.config.suite_id, hash_name(auth_code.expose()))
}

fn redeemed_write(name: &str, body: &Masked, ttl: Duration) -> Write {
    let record = RedeemedRecord { body: body.clone() };
    Write::put(Collection::RedeemedCodes, name, encode(&record)).expires_at(unix_now() + ttl.as_secs())
}

fn unavailable(error: ReadError) -> WriteError {
    WriteError::Unavailable(error.to_string())
}

fn not_started() -> AuthorizeError {
    AuthorizeError::State(WriteError::Unavailable("not started".to_owned()))
}

async fn redeem(
    suite_agent: &Arc<Agent>,
    auth_code: &Masked,
    version: RedeemVersion,
) -> Result<Arc<Redeemed>, AuthorizeError> {
    let suite_token = suite_agent.suite().ok_or(AuthorizeError::Invalid("no suite"))?.token();
    let body = json!({ "auth_code": auth_code.expose() });
    let call = |token: &_| JsonCall::post_with_suite_token(&suite_token, version.path(), token, &body);
    let response = call_with_suite_token(&suite_token, *PATH_KEY, call).await?;
    parse_redeemed(response, &[auth_code], false).map(Arc::new)
}

/// The parts of WeCom's response. `secrets` are masked in its errmsg.
fn parse_redeemed(response: Vec<u8>, secrets: &[&Masked], is_kept: bool) -> Result<Redeemed, AuthorizeError> {
    let members = parse_ok_response(&response).map_err(|error| call_error(error, secrets))?;
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    let permanent_code = text(members.get("permanent_code")).filter(|code| !code.is_empty());
    let permanent_code = permanent_code.ok_or(AuthorizeError::Invalid("no permanent_code"))?;
    let corpid = text(members.get("auth_corp_info").and_then(|corp| corp.get("corpid")));
    let corpid = corpid.filter(|corpid| config::is_corpid(corpid));
    let corpid = corpid.ok_or(AuthorizeError::Invalid("no corpid of letters, digits, - and _"))?;
    let agentid =
        members.get("auth_info").and_then(|info| info.get("agent")?.get(0)?.get("agentid")?.as_u64());
    let body = String::from_utf8(response).map_err(|_| AuthorizeError::Invalid("not UTF-8"))?;
    Ok(Redeemed {
        body: Masked::new(body),
        corpid,
        permanent_code: Masked::new(permanent_code),
        access_token: text(members.get("access_token")).map(Masked::new),
        agentid,
        is_kept: AtomicBool::new(is_kept),
    })
}
