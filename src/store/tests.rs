//! The store over the fake server.

pub(crate) mod fake;

use self::fake::FakeServer;
use super::*;

#[tokio::test(start_paused = true)]
async fn replayed_expired_failure_does_not_block_claims() {
    let server = FakeServer::default();
    let (store, _said, _line) = server.connect_store();
    let Ok(Claim::Acquired { lease, .. }) = store.claim("a", 0, false).await else {
        panic!("no replica holds the lease")
    };
    tokio::time::advance(Duration::from_secs(2)).await;
    let backoff = Duration::from_secs(60);
    store.end_lease("a", &lease, Some((b"why", backoff))).await.expect("store available");
    let stored = server.string_value("test:{a}:failure").expect("a failure");
    tokio::time::advance(Duration::from_secs(59)).await;
    match store.claim("a", 0, false).await {
        Ok(Claim::Failed { failure, retry_after }) => {
            assert_eq!((&failure[..], retry_after <= Duration::from_secs(2)), (&b"why"[..], true));
        }
        _ => panic!("the failure blocks claims"),
    }
    server.set_string("test:{a}:failure", &stored, FAILURE_TTL + Duration::from_secs(600));
    match store.claim("a", 0, false).await {
        Ok(Claim::Failed { retry_after, .. }) => {
            assert!(retry_after <= Duration::from_secs(2), "not longer than the backoff")
        }
        _ => panic!("the failure blocks claims"),
    }
    tokio::time::advance(Duration::from_secs(3)).await;
    let claim = store.claim("a", 0, false).await;
    assert!(matches!(claim, Ok(Claim::Acquired { failure: Some(failure), .. }) if &failure[..] == b"why"));
    server.set_string("test:{b}:failure", &stored, FAILURE_TTL + backoff);
    assert!(matches!(store.claim("b", 0, false).await, Ok(Claim::Acquired { failure: None, .. })));
}
