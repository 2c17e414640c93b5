//! Request bodies: read to their end and hashed; buffered only if the handler needs the body.

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use sha2::{Digest, Sha256};

/// A body read to its end.
pub(super) struct HashedBody {
    pub(super) length: u64,
    pub(super) sha256: String,
    /// The body; `None` if it was longer than the limit.
    pub(super) content: Option<Bytes>,
}

/// Reads the body to its end and buffers it if it is at most `max_buffered` bytes long.
pub(super) async fn read_hashed(mut body: Incoming, max_buffered: usize) -> hyper::Result<HashedBody> {
    let mut hash = Sha256::new();
    let mut length = 0;
    let mut buffered = Some(Vec::new());
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        hash.update(&data);
        length += data.len() as u64;
        buffered = buffered.filter(|_| length <= max_buffered as u64);
        if let Some(buffered) = &mut buffered {
            buffered.extend_from_slice(&data);
        }
    }
    let sha256 = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(HashedBody { length, sha256, content: buffered.map(Bytes::from) })
}
