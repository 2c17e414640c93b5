//! Looks for damage in the write-ahead log. SQLite ends the log at the first frame whose checksum is wrong, because a
//! crash may leave the last transaction half written, and so it would drop all that stands behind a damaged frame without
//! a word. <https://www.sqlite.org/fileformat2.html#walformat>

use std::{
    fs::{self, File},
    io::{self, Read},
    path::Path,
};

const HEADER_BYTES: usize = 32;
const FRAME_HEADER_BYTES: usize = 24;
/// The last bit says whether checksums read their words as big-endian.
const MAGIC: u32 = 0x377f_0682;
/// How often the log must look damaged: a process that writes to it meanwhile may be in the middle of a frame.
const READS: usize = 3;

/// Whether the log of writes has a damaged frame with a whole transaction behind it that was durable. Damage to the last
/// transaction cannot be told from a crash while it was written.
pub(super) fn is_damaged(path: &Path) -> io::Result<bool> {
    let mut before = None;
    for _ in 0..READS {
        let log = fs::read(path)?;
        // Another process may have begun the log anew while it was read.
        let damage =
            (read_header(path)? == log.get(..HEADER_BYTES).unwrap_or_default()).then(|| find_damage(&log));
        let Some(damage) = damage.flatten() else { return Ok(false) };
        if before.is_some_and(|before| before != damage) {
            return Ok(false);
        }
        before = Some(damage);
    }
    Ok(true)
}

fn read_header(path: &Path) -> io::Result<Vec<u8>> {
    let mut header = Vec::with_capacity(HEADER_BYTES);
    File::open(path)?.take(HEADER_BYTES as u64).read_to_end(&mut header)?;
    Ok(header)
}

/// The number of the first frame whose checksum is wrong, and that checksum, where at least two transactions end behind
/// it, one right after the other: the first of them was durable before the second one began.
fn find_damage(log: &[u8]) -> Option<(usize, Checksum)> {
    let (header, frames) = log.split_at_checked(HEADER_BYTES)?;
    let is_big_endian = match word(header, 0).checked_sub(MAGIC) {
        Some(last_bit @ 0..=1) => last_bit == 1,
        // A process that creates the log may not have written the header yet.
        _ => return None,
    };
    let page_bytes = word(header, 8) as usize;
    if !page_bytes.is_power_of_two() || !(512..=65_536).contains(&page_bytes) {
        return None;
    }
    let salts = &header[16..24];
    let mut last = Checksum(word(header, 24), word(header, 28));
    let (mut damaged, mut ends) = (None, 0);
    for (nth, frame) in frames.chunks_exact(FRAME_HEADER_BYTES + page_bytes).enumerate() {
        // What stands behind is of an earlier log.
        if frame[8..16] != *salts {
            break;
        }
        let stored = Checksum(word(frame, 16), word(frame, 20));
        let follows =
            last.add(&frame[..8], is_big_endian).add(&frame[FRAME_HEADER_BYTES..], is_big_endian) == stored;
        if !follows {
            damaged.get_or_insert((nth, stored));
            ends = 0;
        } else if damaged.is_some() {
            // The size of the file stands in the last frame of a transaction.
            ends += usize::from(word(frame, 4) != 0);
            if ends == 2 {
                return damaged;
            }
        }
        last = stored;
    }
    None
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().fold(0, |word, byte| word << 8 | u32::from(*byte))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Checksum(u32, u32);

impl Checksum {
    fn add(self, bytes: &[u8], is_big_endian: bool) -> Self {
        let (pairs, _) = bytes.as_chunks::<8>();
        let parse = if is_big_endian { u32::from_be_bytes } else { u32::from_le_bytes };
        pairs.iter().fold(self, |Self(first, second), &[a, b, c, d, e, f, g, h]| {
            let first = first.wrapping_add(parse([a, b, c, d])).wrapping_add(second);
            Self(first, second.wrapping_add(parse([e, f, g, h])).wrapping_add(first))
        })
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;

    const FRAME_BYTES: usize = FRAME_HEADER_BYTES + 4096;

    /// The log of transactions that change one page each; checked against SQLite itself.
    fn log_of(transactions: usize) -> Vec<u8> {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("test.db");
        let connection = Connection::open(&path).expect("a database");
        connection.pragma_update(None, "journal_mode", "wal").expect("set");
        connection.execute_batch("CREATE TABLE t (value INTEGER); INSERT INTO t VALUES (0)").expect("made");
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("moved");
        for nth in 0..transactions {
            connection.execute("UPDATE t SET value = ?1", [nth + 1]).expect("changed");
        }
        let log = fs::read(directory.path().join("test.db-wal")).expect("readable");
        assert_eq!(log.len(), HEADER_BYTES + transactions * FRAME_BYTES);
        log
    }

    #[test]
    fn damage_is_found_where_two_transactions_follow() {
        let whole = log_of(6);
        assert_eq!(find_damage(&whole), None);
        for frame in 0..6 {
            for at in [0, 4, 16, FRAME_HEADER_BYTES, FRAME_BYTES - 1] {
                let mut damaged = whole.clone();
                damaged[HEADER_BYTES + frame * FRAME_BYTES + at] ^= 1;
                let found = find_damage(&damaged).map(|(nth, _)| nth);
                // A changed checksum takes the next frame with it.
                let transactions_behind = 5_usize.saturating_sub(frame + usize::from(at == 16));
                let expected = (transactions_behind >= 2).then_some(frame);
                assert_eq!(found, expected, "byte {at} of frame {frame}");
            }
        }
    }

    #[test]
    fn what_a_crash_leaves_is_no_damage() {
        let whole = log_of(6);
        for length in (0..whole.len()).step_by(997) {
            assert_eq!(find_damage(&whole[..length]), None, "{length} bytes");
            let mut holes = whole.clone();
            holes[length..].fill(0);
            assert_eq!(find_damage(&holes), None, "zeros from {length} on");
        }
    }

    #[test]
    fn frames_of_an_earlier_log_do_not_count() {
        let (mut short, long) = (log_of(2), log_of(6));
        short.extend_from_slice(&long[short.len()..]);
        assert_eq!(find_damage(&short), None);
    }
}
