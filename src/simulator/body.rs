//! Request bodies: read to their end, hashed, kept only as far as someone needs them.

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use sha2::{Digest, Sha256};

/// A body that was read to its end.
pub(super) struct HashedBody {
    pub(super) length: u64,
    pub(super) sha256: String,
    /// The body, unless it was longer than what was to be kept.
    pub(super) content: Option<Bytes>,
}

/// Reads the body to its end and keeps it if it is at most `keep` bytes long.
pub(super) async fn read_hashed(mut body: Incoming, keep: usize) -> hyper::Result<HashedBody> {
    let mut hash = Sha256::new();
    let mut bytes = 0;
    let mut kept = Some(Vec::new());
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        hash.update(&data);
        bytes += data.len() as u64;
        kept = kept.filter(|_| bytes <= keep as u64);
        if let Some(kept) = &mut kept {
            kept.extend_from_slice(&data);
        }
    }
    let sha256 = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(HashedBody { length: bytes, sha256, content: kept.map(Bytes::from) })
}
