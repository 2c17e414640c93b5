//! What is kept in the state: tickets, authorised corps, and stand-ins for their permanent codes.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::{
    config::{self, AgentSettings, JsonTable, KeyHash, Origin},
    directory::{CorpCredentials, CorpOverride, StoredEntry},
    secret::{Masked, hex, random_u64},
    state::Record,
};

/// The keys of a corp's table that are not in [`CorpRecord::settings`].
const OWN_KEYS: [&str; 4] = ["suite", "corpid", "permanent_code", "agentid"];

/// The newest suite_ticket of a suite; its name is the suite_id.
#[derive(Serialize, Deserialize)]
pub(super) struct TicketRecord {
    #[serde(with = "masked")]
    pub(super) ticket: Masked,
    /// When it was received, in seconds since 1970.
    pub(super) received_at: u64,
}

/// An auth_code that is being redeemed; its name is the hash of the code.
#[derive(Serialize, Deserialize)]
pub(super) struct AuthCodeRecord {
    pub(super) suite_id: String,
    #[serde(with = "masked")]
    pub(super) auth_code: Masked,
    /// When it is worthless, in seconds since 1970.
    pub(super) expires_at: u64,
}

/// An authorised corp; its name is [`corp_record_name`].
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct CorpRecord {
    #[serde(with = "masked")]
    pub(super) permanent_code: Masked,
    /// What its passes are made under.
    #[serde(with = "masked")]
    pub(super) pass_secret: Masked,
    pub(super) agentid: Option<u64>,
    /// Chosen at random when the corp appeared, so that nothing of one before serves for it.
    #[serde(default)]
    pub(super) generation: u64,
    /// The other keys of its table, as an operator wrote them.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub(super) settings: Map<String, Value>,
    /// The hash of the permanent code that a file had when this one came: it is newer than that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) file_code: Option<String>,
    /// The version of the state that it was read from.
    #[serde(skip)]
    pub(super) version: u64,
}

impl CorpRecord {
    /// A corp that appears now.
    pub(super) fn create(permanent_code: Masked, agentid: Option<u64>) -> Result<Self, getrandom::Error> {
        Ok(Self {
            permanent_code,
            pass_secret: random_secret()?,
            agentid,
            generation: random_u64().max(1),
            settings: Map::new(),
            file_code: None,
            version: 0,
        })
    }

    /// The same corp with a newer permanent code.
    pub(super) fn renewed(
        known: Option<Self>,
        permanent_code: Masked,
        agentid: Option<u64>,
        file: Option<&FileCode>,
    ) -> Result<Self, getrandom::Error> {
        let file_code = file.map(|file| hex::encode(file.hash.as_bytes()));
        // Of a corp of a file, what is known goes with the code that the file had.
        let known = known.filter(|known| file_code.is_none() || known.file_code == file_code);
        let is_known = known.is_some();
        let mut next = match known {
            Some(known) => Self { permanent_code, agentid: agentid.or(known.agentid), ..known },
            None => Self::create(permanent_code, agentid)?,
        };
        if let Some(file) = file.filter(|_| !is_known) {
            // The corp of the file goes on, if it did not cancel.
            next.generation = if file.is_cancelled { next.generation } else { file.generation };
        }
        next.file_code = file_code;
        Ok(next)
    }

    /// What it is called with; the settings are those of any corp.
    pub(super) fn credentials(&self, corpid: &str) -> CorpCredentials {
        CorpCredentials {
            corpid: corpid.to_owned(),
            permanent_code: self.permanent_code.clone(),
            pass_secret: self.pass_secret.clone(),
            settings: AgentSettings::default(),
            origin: self.origin(),
        }
    }

    /// The record of this version.
    pub(super) fn parse(value: &[u8], version: u64) -> Option<Self> {
        serde_json::from_slice(value).ok().map(|record| Self { version, ..record })
    }

    /// Where it is defined.
    pub(super) fn origin(&self) -> Origin {
        Origin::State { version: self.version, generation: self.generation }
    }

    /// What does not concern its token. Keys that are not valid are logged and ignored.
    pub(super) fn agent_settings(&self, suite: &str, corpid: &str) -> AgentSettings {
        let agentid = self.agentid;
        if self.settings.is_empty() {
            return AgentSettings { agentid, ..AgentSettings::default() };
        }
        match config::corp_from_json((suite, corpid), &self.to_entry().table, self.origin()) {
            Ok((corp, _)) => corp.settings,
            Err(error) => {
                tracing::error!(suite, corpid, %error, "settings of a corp in the state are not valid and not in force");
                AgentSettings { agentid, ..AgentSettings::default() }
            }
        }
    }

    /// Its table, as the admin API has it.
    pub(super) fn to_entry(&self) -> StoredEntry {
        let mut map = self.settings.clone();
        map.insert("permanent_code".to_owned(), self.permanent_code.expose().into());
        if let Some(agentid) = self.agentid {
            map.insert("agentid".to_owned(), agentid.into());
        }
        StoredEntry { generation: self.generation, table: JsonTable::from(map), keys: Vec::new() }
    }

    /// The same corp with what an operator wrote.
    pub(super) fn with_entry(self, entry: &StoredEntry, corp: &config::CorpConfig) -> Self {
        let mut settings = entry.table.as_map().clone();
        settings.retain(|key, _| !OWN_KEYS.contains(&key.as_str()));
        Self {
            permanent_code: corp.permanent_code.clone(),
            agentid: corp.settings.agentid,
            generation: entry.generation,
            settings,
            ..self
        }
    }
}

/// What is known of the permanent code that a file has for a corp.
pub(super) struct FileCode {
    pub(super) hash: KeyHash,
    /// The generation of the agent.
    pub(super) generation: u64,
    /// Whether the corp cancelled while the file had it.
    pub(super) is_cancelled: bool,
}

/// A corp that a file names and that withdrew its authorisation; its name is [`corp_record_name`].
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct CancellationRecord {
    /// The hash of the permanent code that the file had then: another one is in force.
    pub(super) file_code: String,
    /// Chosen at random at the cancellation, so that passes from before stay void with another code too.
    #[serde(default)]
    generation: u64,
    /// The version of the state that it was read from.
    #[serde(skip)]
    version: u64,
}

impl CancellationRecord {
    pub(super) fn new(file_code: &KeyHash) -> Self {
        Self { file_code: hex::encode(file_code.as_bytes()), generation: random_u64().max(1), version: 0 }
    }

    /// The record of this version.
    pub(super) fn parse(value: &[u8], version: u64) -> Option<Self> {
        serde_json::from_slice(value).ok().map(|record| Self { version, ..record })
    }
}

/// What the newer of two records says of a corp that a file names.
pub(super) fn newest_override(
    corp: Option<&CorpRecord>,
    cancellation: Option<&CancellationRecord>,
    corpid: &str,
) -> Option<CorpOverride> {
    let renewed = corp.filter(|corp| cancellation.is_none_or(|known| known.version < corp.version));
    let (file_code, generation) = match (renewed, cancellation) {
        (Some(corp), _) => (corp.file_code.as_ref()?, corp.generation),
        (None, Some(cancellation)) => (&cancellation.file_code, cancellation.generation),
        (None, None) => return None,
    };
    let renewed = renewed.map(|corp| corp.credentials(corpid));
    Some(CorpOverride { file_code: KeyHash::from_hex(file_code)?, renewed, generation })
}

/// An auth_code that was redeemed, or is being redeemed; its name is the suite_id, a slash, and the hash of the code.
#[derive(Serialize, Deserialize)]
pub(super) struct RedeemedRecord {
    /// WeCom's response; empty while a replica waits for it.
    #[serde(with = "masked")]
    pub(super) body: Masked,
}

impl RedeemedRecord {
    pub(super) fn parse(record: &Record) -> Option<Self> {
        serde_json::from_slice(record.value.as_ref()?).ok()
    }
}

/// What a stand-in stands for; its name is the hash of the stand-in.
#[derive(Clone, Serialize, Deserialize, PartialEq, Eq)]
pub(super) struct StandInRecord {
    pub(super) suite_id: String,
    pub(super) corpid: String,
    /// The client's name; empty for callers of an open proxy.
    pub(super) client: String,
}

/// The name of a corp's record. Neither part contains a slash.
pub(super) fn corp_record_name(suite_id: &str, corpid: &str) -> String {
    format!("{suite_id}/{corpid}")
}

/// The suite_id and the corpid of a record's name.
pub(super) fn parse_corp_record_name(name: &str) -> Option<(&str, &str)> {
    name.split_once('/')
}

/// The name of the record of a secret: looking a guess up by its hash tells nothing about the secrets that there are.
pub(super) fn hash_name(secret: &str) -> String {
    hex::encode(&Sha256::digest(secret))
}

/// A secret in a record, which is encrypted as a whole.
mod masked {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::secret::Masked;

    pub(super) fn serialize<S: Serializer>(secret: &Masked, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(secret.expose())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Masked, D::Error> {
        String::deserialize(deserializer).map(Masked::new)
    }
}

/// A record's value as JSON.
pub(super) fn encode(record: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(record).unwrap_or_default()
}

/// A random text of 48 hexadecimal digits.
pub(super) fn random_secret() -> Result<Masked, getrandom::Error> {
    let mut bytes = Zeroizing::new([0; 24]);
    getrandom::fill(&mut *bytes)?;
    Ok(Masked::new(hex::encode(&*bytes)))
}
