//! Opens the file: makes a missing one, and checks an existing one before anything is written.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, config::DbConfig, ffi};

use super::{
    super::OpenError,
    schema::{APPLICATION_ID, MIGRATIONS, SCHEMA_VERSION, migrate, version_of},
    wal,
};
use crate::{format_text, secret::seal::Sealer, text, text::Text};

/// How long an access waits for another process that writes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Pages of the write-ahead log from which on a commit moves it into the file. Checkpoints beside the commits keep it
/// shorter, as a rule; this bounds it while commits never pause.
const MAX_WAL_PAGES: i64 = 4000;
/// Size that the write-ahead log is cut to after a burst.
const MAX_IDLE_WAL_BYTES: i64 = 16 << 20;
/// The first bytes of each SQLite file.
const MAGIC: &[u8] = b"SQLite format 3\0";
/// What the value of the key check says when it is decrypted.
pub(super) const KEY_CHECK: &[u8] = b"wecom-proxy state";
/// The place of the key check, for its encryption.
pub(super) const KEY_CHECK_AAD: &str = "meta:key";

/// What a file URI keeps as it is.
const PATH_CHARS: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'.').remove(b'-').remove(b'_');

/// Makes a missing file and checks an existing one, which stays as it was if it cannot be used.
pub(super) fn create_or_check(path: &Path, sealer: &Sealer) -> Result<(), OpenError> {
    if !path.try_exists().map_err(|error| unusable(path, &error))? {
        create(path, sealer)?;
    }
    connect_with_key(path, sealer).map(drop)
}

/// As [`connect_for_check`], for a file whose values are sealed under a configured key.
pub(super) fn connect_with_key(path: &Path, sealer: &Sealer) -> Result<Connection, OpenError> {
    let connection = connect_for_check(path)?;
    check_key(path, &connection, sealer)?;
    Ok(connection)
}

/// A connection for writing to a checked file.
pub(super) fn connect_writer(path: &Path) -> rusqlite::Result<Connection> {
    let mut connection = connect(path)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    // Deleted values are overwritten where that costs no further writes.
    connection.pragma_update(None, "secure_delete", "fast")?;
    connection.pragma_update(None, "journal_size_limit", MAX_IDLE_WAL_BYTES)?;
    connection.pragma_update(None, "wal_autocheckpoint", MAX_WAL_PAGES)?;
    migrate(&mut connection, MIGRATIONS)?;
    Ok(connection)
}

/// Moves what the write-ahead log has into the file, as far as no reader needs it there. Blocks no commit.
pub(super) fn checkpoint(path: &Path) -> rusqlite::Result<()> {
    let connection = connect(path)?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
}

/// A connection for reading from a checked file. `immutable`: without locks and without files beside it, for a disk that
/// is full or read-only; fails while there are writes that only the log has.
pub(super) fn connect_reader(path: &Path, immutable: bool) -> rusqlite::Result<Connection> {
    if immutable && !has_wal(path) { connect_immutable(path) } else { connect(path) }
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(connection)
}

/// Makes the file under another name, so that an interruption leaves no half of one.
fn create(path: &Path, sealer: &Sealer) -> Result<(), OpenError> {
    let directory = directory_of(path);
    let attempt = || -> io::Result<()> {
        // Its error names the directory's problem alone; that of the temporary file names the file.
        fs::metadata(directory)?;
        let file = tempfile::Builder::new().prefix(".state-").tempfile_in(directory)?;
        // SQLite gives the files beside it the same mode, whatever the umask.
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o600))?;
        let initialized = initialize(file.path(), sealer);
        // Where the disk is full, SQLite leaves them.
        for suffix in ["-wal", "-shm"] {
            let _ = fs::remove_file(beside(file.path(), suffix));
        }
        initialized.map_err(io_error)?;
        file.as_file().sync_all()?;
        match file.persist_noclobber(path) {
            Ok(_) => File::open(directory)?.sync_all(),
            // Another process was faster.
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error.error),
        }
    };
    attempt().map_err(|error| unusable(path, &error))
}

/// With the kind that the error would have without SQLite.
fn io_error(error: rusqlite::Error) -> io::Error {
    if is_full(&error) { io::Error::new(io::ErrorKind::StorageFull, error) } else { io::Error::other(error) }
}

/// Whether no room is left. A file size limit and a disk quota are reported as an I/O error of a write.
pub(super) fn is_full(error: &rusqlite::Error) -> bool {
    let extended = error.sqlite_error().map(|error| error.extended_code);
    error.sqlite_error_code() == Some(ErrorCode::DiskFull)
        || matches!(
            extended,
            Some(ffi::SQLITE_IOERR_WRITE | ffi::SQLITE_IOERR_SHMSIZE | ffi::SQLITE_IOERR_TRUNCATE)
        )
}

fn initialize(path: &Path, sealer: &Sealer) -> rusqlite::Result<()> {
    let connection = connect_writer(path)?;
    let sealed = sealer.seal(KEY_CHECK_AAD, KEY_CHECK);
    connection.execute("INSERT INTO meta VALUES ('key', ?1)", [sealed])?;
    connection.close().map_err(|(_, error)| error)
}

/// A connection to a file that this program can read, apart from its key. Neither the check nor the connection changes
/// the file.
pub(super) fn connect_for_check(path: &Path) -> Result<Connection, OpenError> {
    check_first_bytes(path)?;
    // Without a log of writes, the file alone is the state, and can be read without making files beside it.
    if !has_wal(path) {
        let outcome = connect_immutable(path)
            .map_err(|error| failed(path, &error))
            .and_then(|connection| check_content(path, &connection).map(|()| connection));
        // Where a process began to write meanwhile, what was read may be of two times.
        if !has_wal(path) {
            return outcome;
        }
    }
    let log = wal_of(path);
    match wal::is_damaged(&log) {
        Ok(true) => {
            let reason = format_text!(
                "its log {} is, and the writes behind the damage would be lost",
                "它的日志 {} 已损坏，损坏之后的写入会丢失",
                log.display()
            );
            return Err(damaged(path, reason));
        }
        // Another process has ended and moved the log into the file.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        outcome => {
            outcome.map_err(|error| unusable(&log, &error))?;
        }
    }
    let connection = connect(path).map_err(|error| failed(path, &error))?;
    // Otherwise closing this connection would move the log into the file.
    connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
        .map_err(|error| failed(path, &error))?;
    check_content(path, &connection)?;
    Ok(connection)
}

fn check_first_bytes(path: &Path) -> Result<(), OpenError> {
    let mut first = Vec::new();
    let file = File::open(path).map_err(|error| unusable(path, &error))?;
    file.take(MAGIC.len() as u64).read_to_end(&mut first).map_err(|error| unusable(path, &error))?;
    match &first[..] {
        MAGIC => Ok(()),
        [] => Err(damaged(path, text!("it is empty", "是空文件"))),
        _ => Err(damaged(path, text!("it is no SQLite file", "不是 SQLite 文件"))),
    }
}

fn check_content(path: &Path, connection: &Connection) -> Result<(), OpenError> {
    let failed = |error: rusqlite::Error| failed(path, &error);
    let application: i64 =
        connection.pragma_query_value(None, "application_id", |row| row.get(0)).map_err(failed)?;
    let version = version_of(connection).map_err(failed)?;
    if application != APPLICATION_ID || version < 1 {
        return Err(damaged(
            path,
            text!("it is the SQLite file of another program", "是其他程序的 SQLite 文件"),
        ));
    }
    if version > SCHEMA_VERSION {
        return Err(OpenError::Newer { path: path.to_owned(), version, known: SCHEMA_VERSION });
    }
    let report: String =
        connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(failed)?;
    // The name of the database stands in the first line, between asterisks.
    match report.lines().find(|line| !line.starts_with("***")) {
        Some("ok") => Ok(()),
        problem => {
            let problem = problem.unwrap_or("integrity_check fails");
            Err(damaged(path, format_text!("{problem}", "完整性检查失败（{problem}）")))
        }
    }
}

/// Checks that the values are sealed under a key that is configured.
fn check_key(path: &Path, connection: &Connection, sealer: &Sealer) -> Result<(), OpenError> {
    let sealed: Option<Vec<u8>> = connection
        .query_row("SELECT value FROM meta WHERE name = 'key'", [], |row| row.get(0))
        .optional()
        .map_err(|error| failed(path, &error))?;
    let Some(sealed) = sealed else {
        return Err(damaged(path, text!("its key check is missing", "缺少密钥校验")));
    };
    match sealer.open(KEY_CHECK_AAD, &sealed) {
        Some(plaintext) if *plaintext == KEY_CHECK => Ok(()),
        _ if sealer.has_key_of(&sealed) => {
            Err(damaged(path, text!("its key check is damaged", "密钥校验已损坏")))
        }
        _ => Err(OpenError::Key { path: path.to_owned() }),
    }
}

fn connect_immutable(path: &Path) -> rusqlite::Result<Connection> {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let uri = format!("file://{}?immutable=1", percent_encode(absolute.as_os_str().as_bytes(), PATH_CHARS));
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)
}

/// Whether there is a log with writes that are not in the file yet.
fn has_wal(path: &Path) -> bool {
    fs::metadata(wal_of(path)).is_ok_and(|metadata| metadata.len() > 0)
}

/// The log of writes: SQLite puts it beside the file that a symbolic link leads to.
fn wal_of(path: &Path) -> PathBuf {
    beside(&fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()), "-wal")
}

/// The path with this suffix.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// The directory that the file is in.
pub(super) fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

pub(super) fn damaged(path: &Path, reason: Text) -> OpenError {
    OpenError::Damaged { path: path.to_owned(), reason }
}

/// The error of an access to the file while it is opened.
pub(super) fn failed(path: &Path, error: &rusqlite::Error) -> OpenError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => damaged(path, sqlite_text(error)),
        _ if is_full(error) => unusable(path, &io::Error::new(io::ErrorKind::StorageFull, error.to_string())),
        _ => OpenError::Path { path: path.to_owned(), reason: sqlite_text(error) },
    }
}

fn sqlite_text(error: &rusqlite::Error) -> Text {
    format_text!("{error}", "SQLite 报告：{error}")
}

fn unusable(path: &Path, error: &io::Error) -> OpenError {
    let hint = match error.kind() {
        io::ErrorKind::NotFound => text!("; make its directory first", "；请先创建其目录"),
        io::ErrorKind::PermissionDenied => text!(
            "; the user that runs this program must be able to write to it and its directory",
            "；运行本程序的用户必须能写它和它的目录"
        ),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            text!("; no room is left on its disk, or in a quota: make some", "；磁盘或配额已用完：请腾出空间")
        }
        _ => Text::default(),
    };
    OpenError::Path { path: path.to_owned(), reason: format_text!("{}{}", "{}{}", error, hint) }
}

/// Makes an empty file of mode 0600; there must be none yet.
pub(super) fn create_private(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    Ok(file)
}
