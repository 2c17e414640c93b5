//! The store over a pretended server.

use super::{pretended::Server, *};

#[tokio::test(start_paused = true)]
async fn a_failure_that_is_put_there_again_when_it_is_over_holds_nobody_back() {
    let server = Server::default();
    let (store, _said, _line) = server.store();
    let Ok(Claim::Ours { lease, .. }) = store.claim("a", 0, false).await else { panic!("nobody has it") };
    tokio::time::advance(Duration::from_secs(2)).await;
    let wait = Duration::from_secs(60);
    store.end("a", &lease, Some((b"why", wait))).await.expect("it is there");
    let kept = server.text("test:{a}:failure").expect("a failure");
    tokio::time::advance(Duration::from_secs(59)).await;
    match store.claim("a", 0, false).await {
        Ok(Claim::Failed { failure, wait }) => {
            assert_eq!((&failure[..], wait <= Duration::from_secs(2)), (&b"why"[..], true));
        }
        _ => panic!("it holds the others back"),
    }
    server.put("test:{a}:failure", &kept, REMEMBERED + Duration::from_secs(600));
    match store.claim("a", 0, false).await {
        Ok(Claim::Failed { wait, .. }) => assert!(wait <= Duration::from_secs(2), "no longer than it did"),
        _ => panic!("it holds the others back"),
    }
    tokio::time::advance(Duration::from_secs(3)).await;
    let claim = store.claim("a", 0, false).await;
    assert!(matches!(claim, Ok(Claim::Ours { failure: Some(failure), .. }) if &failure[..] == b"why"));
    server.put("test:{b}:failure", &kept, REMEMBERED + wait);
    assert!(matches!(store.claim("b", 0, false).await, Ok(Claim::Ours { failure: None, .. })));
}
