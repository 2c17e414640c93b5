//! The name of this instance of the proxy among its replicas.

use sha2::{Digest, Sha256};

use crate::config::Config;

/// The name that the environment gives, as `service.instance.id` in `OTEL_RESOURCE_ATTRIBUTES`.
pub(super) fn configured_name(config: &Config) -> Option<&str> {
    config.traces.as_ref()?.resource_attribute("service.instance.id")
}

/// An id that a restart does not change: a UUID made of the host's name and the configured addresses.
pub(super) fn id(config: &Config) -> String {
    let mut hash = Sha256::new();
    hash.update(host_name());
    for address in &config.server.listen {
        hash.update(b"\0");
        hash.update(address.to_string());
    }
    let digest = hash.finalize();
    let mut bytes: [u8; 16] = std::array::from_fn(|nth| digest[nth]);
    // RFC 9562: version 8, for a vendor's own way to make it.
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = crate::secret::hex::encode(&bytes);
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// The name of this machine or container.
pub(super) fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| String::new(), |name| name.trim().to_owned())
}
