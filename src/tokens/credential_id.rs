//! Whose token or ticket it is, without saying more of the credentials.

use hmac::Mac;

use crate::{
    config::UpstreamId,
    secret::{Masked, hex, hmac_with_key},
    text::SharedStr,
};

/// The credentials of a gettoken call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The company's corpid.
    pub corpid: SharedStr,
    /// The application's secret.
    pub secret: Masked,
    /// Where gettoken is sent.
    pub upstream: UpstreamId,
    /// Tells an agent of the state from a deleted one of its name, whose token it must not get; 0 for an agent of a
    /// file.
    pub generation: u64,
}

impl Credentials {
    /// Those of a file, for the first upstream.
    pub fn new(corpid: impl Into<SharedStr>, secret: Masked) -> Self {
        Self { corpid: corpid.into(), secret, upstream: UpstreamId::default(), generation: 0 }
    }

    /// The same for all generations: WeCom knows of none, so backoff is kept by these.
    pub(super) fn without_generation(&self) -> Self {
        Self { generation: 0, ..self.clone() }
    }
}

/// Identifies a value of some credentials, in the cache and in the store: a keyed hash of its kind, the corpid, the
/// secret and the upstream's name. It reveals nothing of them, and a changed secret gives another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CredentialId([u8; 16]);

impl CredentialId {
    /// `kind` is what `kinds` says. Replicas of two versions must agree on all of
    /// this.
    pub fn new(kind: &str, Credentials { corpid, secret, upstream, generation }: &Credentials) -> Self {
        let mut mac = hmac_with_key(secret.expose().as_bytes());
        mac.update(b"wecom-proxy store v1");
        mac.update(kind.as_bytes());
        mac.update(b"\0");
        mac.update(corpid.as_bytes());
        if let Some(name) = upstream.name() {
            // No corpid contains this separator.
            mac.update(b"\0");
            mac.update(name.as_bytes());
        }
        if *generation != 0 {
            mac.update(b"\0");
            mac.update(&generation.to_be_bytes());
        }
        let digest = mac.finalize().into_bytes();
        Self(std::array::from_fn(|nth| digest[nth]))
    }

    /// Its name in the store.
    pub fn store_name(&self) -> String {
        hex::encode(&self.0)
    }

    /// The id with this name in the store.
    pub(super) fn from_store_name(name: &str) -> Option<Self> {
        hex::decode(name.as_bytes()).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn store_name_is_parsed_back_and_differs_by_all_its_parts() {
        let credentials = |secret: &str| Credentials {
            corpid: "ww1".into(),
            secret: Masked::new(secret),
            upstream: UpstreamId::default(),
            generation: 0,
        };
        let id = CredentialId::new("", &credentials("one"));
        assert_eq!(CredentialId::from_store_name(&id.store_name()), Some(id));
        assert_eq!(id.store_name().len(), 32);
        for other in [
            CredentialId::new("jsapi", &credentials("one")),
            CredentialId::new("", &credentials("two")),
            CredentialId::new("", &Credentials { generation: 1, ..credentials("one") }),
            CredentialId::new("", &Credentials { generation: 2, ..credentials("one") }),
        ] {
            assert_ne!(other, id);
        }
        for name in ["", "0", &id.store_name()[1..], &format!("{}00", id.store_name()), &"zz".repeat(16)] {
            assert_eq!(CredentialId::from_store_name(name), None, "{name}");
        }
    }

    /// Replicas of two versions must agree on the names for `[upstream]`.
    #[test]
    fn upstream_has_ids_of_its_own_and_the_default_the_former_ones() {
        let id = |upstream: UpstreamId| {
            let (corpid, secret) = ("ww1".into(), Masked::new("one"));
            let credentials = Credentials { corpid, secret, upstream, generation: 0 };
            CredentialId::new("", &credentials).store_name()
        };
        let names = [
            id(UpstreamId::default()),
            id(UpstreamId::named(0, "private")),
            id(UpstreamId::named(0, "other")),
        ];
        assert_eq!(names[0], "038d76fcad3b32170093eed302f68cd1");
        assert_eq!(id(UpstreamId::named(3, "private")), names[1], "the index may change");
        assert!(names[0] != names[1] && names[0] != names[2] && names[1] != names[2], "{names:?}");
    }
}
