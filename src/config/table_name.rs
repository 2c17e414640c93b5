//! The names of agents and clients.

/// Bounds names, because passes contain them and have a maximum length.
pub(super) const MAX_NAME_BYTES: usize = 64;

/// Whether `name` is valid for an agent or client.
pub fn is_valid_name(name: &str) -> bool {
    has_valid_characters(name) && name.len() <= MAX_NAME_BYTES
}

pub(super) fn has_valid_characters(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}
