//! Records, writes, and why they fail.

use std::{fmt, path::PathBuf};

use zeroize::Zeroizing;

use super::{Collection, record_aad};
use crate::{
    display_text, format_text, secret::seal::Sealer, store::StoreError, text, text::Text, time::clock,
};

/// One version of a record.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    /// The collection.
    pub collection: Collection,
    /// The name, unique in the collection. Not encrypted.
    pub name: String,
    /// The version of the transaction that wrote the record.
    pub version: u64,
    /// The value; `None`: the record was deleted.
    pub value: Option<Zeroizing<Vec<u8>>>,
    /// When the record expires, in seconds since 1970.
    pub expires_at: Option<u64>,
}

/// The value may be a secret.
impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.value.is_some() { "" } else { " deleted" };
        write!(f, "Record({}:{} version {}{kind})", self.collection.name(), self.name, self.version)
    }
}

/// A record whose value is still sealed.
pub(super) struct SealedRecord {
    pub(super) collection: Collection,
    pub(super) name: String,
    pub(super) version: u64,
    pub(super) value: Option<Vec<u8>>,
    pub(super) expires_at: Option<u64>,
}

impl SealedRecord {
    /// `collection:name`
    pub(super) fn place(&self) -> String {
        record_aad(self.collection.name(), &self.name)
    }

    /// Whether the value is sealed under a configured key.
    pub(super) fn has_key(&self, sealer: &Sealer) -> bool {
        self.value.as_ref().is_none_or(|sealed| sealer.has_key_of(sealed))
    }

    /// Decrypts the value. One that has expired, but has not been deleted yet, counts as deleted.
    pub(super) fn open(self, sealer: &Sealer) -> Result<Record, ReadError> {
        let is_expired = self.expires_at.is_some_and(|end| end <= clock::unix_now());
        let sealed = self.value.as_ref().filter(|_| !is_expired);
        let opened = sealed.map(|sealed| {
            let place = self.place();
            sealer.open(&place, sealed).ok_or(ReadError::Unreadable(place))
        });
        let value = opened.transpose()?;
        let expires_at = self.expires_at.filter(|_| value.is_some());
        let Self { collection, name, version, .. } = self;
        Ok(Record { collection, name, version, value, expires_at })
    }
}

/// What a record must be before it is written. An expired record counts as absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precondition {
    /// Anything.
    None,
    /// There is no such record.
    Absent,
    /// There is one.
    Present,
    /// There is one of this version.
    Version(u64),
    /// There is one of this version, and another one in its collection. A conflict that names this version: there is no
    /// other one. For collections whose records do not expire.
    NotLast(u64),
}

impl Precondition {
    /// Whether it holds where the record has the version `current`, or is absent.
    pub(super) fn holds(self, current: Option<u64>) -> bool {
        match self {
            Self::None => true,
            Self::Absent => current.is_none(),
            Self::Present => current.is_some(),
            Self::Version(version) | Self::NotLast(version) => current == Some(version),
        }
    }
}

/// The write of one record.
pub struct Write {
    /// The collection.
    pub collection: Collection,
    /// The name; not encrypted, so it must not be a secret.
    pub name: String,
    /// The new value; `None` deletes the record.
    pub value: Option<Zeroizing<Vec<u8>>>,
    /// What must hold before any write of the transaction.
    pub precondition: Precondition,
    /// When the record expires, in seconds since 1970; it is deleted within some minutes of that.
    pub expires_at: Option<u64>,
}

impl Write {
    /// Creates or replaces a record.
    pub fn put(collection: Collection, name: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        Self::put_secret(collection, name, Zeroizing::new(value.into()))
    }

    /// The same with a value that is not copied.
    pub fn put_secret(collection: Collection, name: impl Into<String>, value: Zeroizing<Vec<u8>>) -> Self {
        Self { value: Some(value), ..Self::delete(collection, name) }
    }

    /// Deletes a record, if there is one.
    pub fn delete(collection: Collection, name: impl Into<String>) -> Self {
        let (precondition, expires_at) = (Precondition::None, None);
        Self { collection, name: name.into(), value: None, precondition, expires_at }
    }

    /// With a precondition.
    #[must_use]
    pub fn when(self, precondition: Precondition) -> Self {
        Self { precondition, ..self }
    }

    /// With an end, in seconds since 1970.
    #[must_use]
    pub fn expires_at(self, expires_at: u64) -> Self {
        Self { expires_at: Some(expires_at), ..self }
    }
}

/// How much a scan returns at most. It returns one record at least, if there is one.
#[derive(Debug, Clone, Copy)]
pub struct PageLimit {
    /// Records.
    pub records: usize,
    /// Bytes of sealed values, which one record may exceed.
    pub bytes: usize,
}

/// What a scan returns.
#[derive(Debug, Default)]
pub struct RecordPage {
    /// The records, in the order of their names' bytes.
    pub records: Vec<Record>,
    /// The name behind which the next page begins; `None`: this is the last one.
    pub after: Option<String>,
}

/// What records with a common prefix of their names amount to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecordSummary {
    /// How many there are.
    pub count: u64,
    /// The smallest suffix of their names.
    pub min_suffix: Option<String>,
}

/// Why a write did not succeed. Nothing was written, except where [`WriteError::Unknown`] leaves it open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// A precondition does not hold.
    #[error("the record is not as expected")]
    Conflict {
        /// The position in the list of writes.
        index: usize,
        /// The record's version; `None`: it is absent.
        current: Option<u64>,
    },
    /// No room is left on the disk, or in the file.
    #[error("no room is left for the state: {0}")]
    Full(String),
    /// The file or its directory is read-only.
    #[error("the state is read-only: {0}")]
    ReadOnly(String),
    /// Anything else, such as a lock that another process holds or a lost connection.
    #[error("the state is unavailable: {0}")]
    Unavailable(String),
    /// No reply, or what was written could not be delivered.
    #[error("the state is unavailable, and the write may have been carried out: {0}")]
    Unknown(String),
}

/// Why nothing could be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The state cannot be read now.
    #[error("the state is unavailable: {0}")]
    Unavailable(String),
    /// The value is damaged, or sealed under a key that is not configured.
    #[error("the record {0} cannot be decrypted: it is damaged, or sealed under another key")]
    Unreadable(String),
}

/// The record, or a log line about one that cannot be decrypted.
pub(super) fn skip_unreadable(record: Result<Record, ReadError>) -> Option<Record> {
    record.inspect_err(|error| tracing::error!(%error, "record of the state skipped")).ok()
}

/// Why the state cannot be opened. The file is as it was.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file cannot be created or opened.
    Path {
        /// The file.
        path: PathBuf,
        /// The cause and a hint.
        reason: Text,
    },
    /// The file is damaged or something else than a state.
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is damaged.
        reason: Text,
    },
    /// A newer version of the program wrote the file.
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema version.
        version: i64,
        /// That of this program.
        known: i64,
    },
    /// The file is sealed under another key.
    Key {
        /// The file.
        path: PathBuf,
    },
    /// No cipher key can be derived from the configured one.
    InvalidKey,
    /// The store of a shared state cannot be used.
    Store(#[from] StoreError),
    /// The records of a shared state are sealed under another key.
    SharedKey,
    /// The thread of the state could not be created.
    Thread(std::io::Error),
}

display_text!(OpenError);

impl OpenError {
    /// What is wrong, and what to do.
    pub fn text(&self) -> Text {
        match self {
            Self::Path { path, reason } => format_text!(
                "state.path: {} cannot be opened: {}",
                "state.path：{} 无法打开：{}",
                path.display(),
                reason
            ),
            Self::Damaged { path, reason } => format_text!(
                "state.path: {} is damaged: {}; restore a file made by `wecom-proxy state backup`, or move this one and its \
                 -wal file away to begin with an empty state",
                "state.path：{} 已损坏：{}；请恢复 `wecom-proxy state backup` 生成的文件，或移走此文件及其 -wal 文件，从空状态开始",
                path.display(),
                reason
            ),
            Self::Newer { path, version, known } => format_text!(
                "state.path: {} has schema version {version}, this program knows {known} at most: a newer wecom-proxy wrote \
                 it; start that one, or restore a backup made before",
                "state.path：{} 的结构版本是 {version}，本程序最多支持 {known}：它由更新版本的 wecom-proxy 写入；请启动那个版本，或恢复之前的备份",
                path.display()
            ),
            Self::Key { path } => format_text!(
                "state.key: {} was written under another key; configure that one as state.key, or as state.old_key until \
                 `wecom-proxy state rekey` has run",
                "state.key：{} 是用另一个密钥写入的；请把它配置为 state.key，或在运行 `wecom-proxy state rekey` 之前配置为 state.old_key",
                path.display()
            ),
            Self::InvalidKey => text!("state.key: invalid key", "state.key：密钥无效"),
            Self::Store(error) => error.text(),
            Self::SharedKey => text!(
                "tokens.store.key: the shared state was written under another key, or is damaged; configure that one as \
                 tokens.store.key, or as old_key until `wecom-proxy state rekey` has run",
                "tokens.store.key：共享的状态是用另一个密钥写入的，或已损坏；请把它配置为 tokens.store.key，或在运行 \
                 `wecom-proxy state rekey` 之前配置为 old_key"
            ),
            Self::Thread(error) => format_text!("state: {}", "state：{}", error),
        }
    }

    /// Whether another configuration would help, rather than another file.
    pub fn is_configuration(&self) -> bool {
        matches!(self, Self::Key { .. } | Self::InvalidKey | Self::Store(_) | Self::SharedKey)
    }
}
