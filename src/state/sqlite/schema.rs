//! The schema of the file, and its migrations.

use rusqlite::{Connection, TransactionBehavior};

/// `PRAGMA application_id`: marks the file as a state of this program.
pub(super) const APPLICATION_ID: i64 = 0x5743_5053;

/// The steps from each version to the next, in order; a step that was released never changes. The first one makes an
/// empty file version 1.
pub(super) const MIGRATIONS: &[&str] = &[
    // `value`: sealed; NULL marks a deletion of a followed record, so that other processes see it.
    // `expires_at`: seconds since 1970.
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value ANY NOT NULL) STRICT, WITHOUT ROWID;
     INSERT INTO meta VALUES ('version', 0);
     CREATE TABLE records (
         collection TEXT NOT NULL,
         name TEXT NOT NULL,
         version INTEGER NOT NULL,
         followed INTEGER NOT NULL,
         value BLOB,
         expires_at INTEGER,
         UNIQUE (collection, name)
     ) STRICT;
     CREATE INDEX followed_by_version ON records (version) WHERE followed;
     CREATE INDEX records_by_end ON records (expires_at) WHERE expires_at IS NOT NULL;",
    // Clients read callbacks in the order in which they were stored.
    "CREATE INDEX callbacks_by_version ON records (version) WHERE collection = 'callback_pull';",
];

/// The version of this program's schema.
pub(super) const SCHEMA_VERSION: i64 = MIGRATIONS.len() as i64;

/// The schema version of the file.
pub(super) fn version_of(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Takes the file to the last version in `migrations`, each step in a transaction. Another process may do the same at
/// the same time.
pub(super) fn migrate(connection: &mut Connection, migrations: &[&str]) -> rusqlite::Result<()> {
    while version_of(connection)? < migrations.len() as i64 {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let version = version_of(&transaction)?;
        let next = usize::try_from(version).ok().and_then(|version| migrations.get(version));
        let Some(step) = next else { break };
        transaction.execute_batch(step)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", version + 1)?;
        transaction.commit()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_of_each_earlier_version_keeps_its_records() {
        for version in 1..=MIGRATIONS.len() {
            let mut connection = Connection::open_in_memory().expect("a database");
            migrate(&mut connection, &MIGRATIONS[..version]).expect("an earlier version");
            let insert = "INSERT INTO records (collection, name, version, followed, value) VALUES ('agents', 'hr', 7, 1, x'00')";
            connection.execute(insert, []).expect("inserted");
            migrate(&mut connection, MIGRATIONS).expect("migrated");
            assert_eq!(version_of(&connection), Ok(SCHEMA_VERSION));
            let found =
                connection.query_row("SELECT version FROM records WHERE name = 'hr'", [], |row| row.get(0));
            assert_eq!(found, Ok(7), "from version {version}");
        }
    }

    #[test]
    fn failed_step_leaves_the_version_before() {
        let mut connection = Connection::open_in_memory().expect("a database");
        let steps = [MIGRATIONS[0], "CREATE TABLE extra (a INTEGER); INSERT INTO missing VALUES (1);"];
        assert!(migrate(&mut connection, &steps).is_err());
        assert_eq!(version_of(&connection), Ok(1));
        assert!(connection.execute("INSERT INTO extra VALUES (1)", []).is_err(), "the step was undone");
        migrate(&mut connection, &[MIGRATIONS[0], "CREATE TABLE extra (a INTEGER);"]).expect("migrated");
        assert_eq!(version_of(&connection), Ok(2));
    }
}
