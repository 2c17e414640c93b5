//! Agents with two secrets, or with a secret from a file.

use std::{
    fs,
    future::Future,
    path::PathBuf,
    pin::pin,
    sync::Arc,
    task::{Context, Waker},
    time::Duration,
};

use tempfile::TempDir;
use tokio::time::Instant;

use super::fake_gettoken::{FakeGettoken, FakeResponse, advance, path, run_ready_tasks};
use crate::{
    config::{SourcedSecret, UpstreamId},
    secret::Masked,
    tokens::{AgentToken, Credentials, ReplaceOutcome, TokenCache},
};

const REFUSED: FakeResponse = FakeResponse::Errcode(40001);
fn plain(secret: &str) -> SourcedSecret {
    SourcedSecret { value: Masked::new(secret), file: None }
}

fn agent(cache: &Arc<TokenCache>, secrets: &[&str]) -> AgentToken {
    agent_after(cache, secrets, None)
}

fn agent_after(cache: &Arc<TokenCache>, secrets: &[&str], before: Option<&AgentToken>) -> AgentToken {
    agent_of(cache, secrets.iter().map(|secret| plain(secret)).collect(), before)
}

fn agent_of(cache: &Arc<TokenCache>, secrets: Vec<SourcedSecret>, before: Option<&AgentToken>) -> AgentToken {
    let secrets = secrets.into_iter().map(|SourcedSecret { value: secret, file }| {
        let (corpid, upstream) = ("ww1".into(), UpstreamId::default());
        (Credentials { corpid, secret, upstream, generation: 0 }, file)
    });
    AgentToken::new(cache, &"a".into(), secrets, before, before.is_some())
}

/// A secret in a file.
struct TestSecretFile {
    dir: TempDir,
}

impl TestSecretFile {
    fn new(secret: &str) -> Self {
        let file = Self { dir: TempDir::new().expect("a directory") };
        file.write(secret);
        file
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("secret")
    }

    fn write(&self, secret: &str) {
        fs::write(self.path(), secret).expect("written");
    }

    fn load(&self) -> SourcedSecret {
        let text = fs::read_to_string(self.path()).expect("a secret");
        SourcedSecret { value: Masked::new(text.trim_end()), file: Some(self.path()) }
    }
}

#[tokio::test(start_paused = true)]
async fn refused_secret_is_followed_by_the_other_one_which_is_kept() {
    let fake = FakeGettoken::new(7200);
    fake.set_response_of_secret("A", REFUSED);
    let token = agent(&fake.service(), &["A", "B"]);
    let first = token.current_or_fetch().await.expect("the second secret works");
    assert_eq!(fake.called_secrets(), ["A", "B"]);
    fake.set_response_of_secret("B", FakeResponse::NewToken);
    let ReplaceOutcome::Refreshed(second) = token.replace_refused(&first, path()).await else {
        panic!("refreshed")
    };
    assert!(!second.is_same_as(&first));
    assert!(token.cached(Instant::now()).is_some_and(|cached| cached.is_same_as(&second)));
    assert_eq!(fake.called_secrets(), ["A", "B", "B"]);
    assert_eq!(token.status().last_error, None);
}

/// The second secret is tried as soon as WeCom refuses the first, whether or not the request that waits runs in between.
#[tokio::test(start_paused = true)]
async fn late_request_gets_the_token_of_the_secret_that_works() {
    let fake = FakeGettoken::new(7200);
    fake.set_response_of_secret("A", REFUSED);
    let token = agent(&fake.service(), &["A", "B"]);
    let mut waiting = pin!(token.current_or_fetch());
    assert!(waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    run_ready_tasks().await;
    assert_eq!(fake.called_secrets(), ["A", "B"]);
    waiting.await.expect("the token of the second secret");
    assert_eq!(fake.called_secrets(), ["A", "B"]);
}

#[tokio::test(start_paused = true)]
async fn refused_token_and_secret_are_followed_by_the_other_secret() {
    let fake = FakeGettoken::new(7200);
    let token = agent(&fake.service(), &["A", "B"]);
    let first = token.current_or_fetch().await.expect("a token");
    fake.set_response_of_secret("A", REFUSED);
    fake.set_response_of_secret("B", FakeResponse::NewToken);
    assert!(matches!(token.replace_refused(&first, path()).await, ReplaceOutcome::Refreshed(_)));
    assert_eq!(fake.called_secrets(), ["A", "A", "B"]);
}

/// Requests for six hours: however many there are, no third secret is tried before a backoff of at least a minute.
#[tokio::test(start_paused = true)]
async fn two_wrong_secrets_are_followed_by_the_backoff() {
    let fake = FakeGettoken::new(7200);
    fake.set_default_response(REFUSED);
    let token = agent(&fake.service(), &["A", "B"]);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(6 * 3600) {
        for _ in 0..3 {
            assert_eq!(token.current_or_fetch().await.expect_err("refused").errcode(), 40001);
        }
        run_ready_tasks().await;
        advance(0.7).await;
    }
    let (times, secrets) = (fake.call_times(), fake.called_secrets());
    assert_eq!(secrets[..2], ["A", "B"]);
    for three in times.windows(3) {
        assert!(three[2] - three[0] >= Duration::from_secs(60), "{:?}", three[2] - three[0]);
    }
    // Each of the two as often as the only secret of an agent: at first after a minute, at last every 15 minutes.
    let count = |secret: &str| secrets.iter().filter(|called| *called == secret).count();
    assert!((24..=30).contains(&count("A")) && (24..=30).contains(&count("B")), "{secrets:?}");
}

#[tokio::test(start_paused = true)]
async fn second_secret_is_tried_in_turn_after_the_backoff() {
    let fake = FakeGettoken::new(7200);
    fake.set_default_response(REFUSED);
    let token = agent(&fake.service(), &["A", "B"]);
    token.current_or_fetch().await.expect_err("refused");
    fake.set_response_of_secret("B", FakeResponse::Normal);
    advance(50.0).await;
    token.current_or_fetch().await.expect_err("in backoff");
    assert_eq!(fake.calls(), 2);
    advance(30.0).await;
    token.current_or_fetch().await.expect("the second secret works now");
}

#[tokio::test(start_paused = true)]
async fn operators_refresh_tries_each_secret_once() {
    let fake = FakeGettoken::new(7200);
    fake.set_default_response(REFUSED);
    let token = agent(&fake.service(), &["A", "B"]);
    for nth in 1..=3 {
        token.force_refresh().await.expect_err("refused");
        run_ready_tasks().await;
        assert_eq!(fake.calls(), 2 * nth, "{:?}", fake.called_secrets());
    }
    fake.set_response_of_secret("B", FakeResponse::Normal);
    token.force_refresh().await.expect("the second secret works now");
    assert_eq!(fake.called_secrets(), ["A", "B", "A", "B", "A", "B", "A", "B"]);
}

#[tokio::test(start_paused = true)]
async fn proactive_refresh_tries_the_other_secret_while_the_token_serves() {
    let fake = FakeGettoken::new(7200);
    let token = agent(&fake.service(), &["A", "B"]);
    token.current_or_fetch().await.expect("a token");
    token.cached(Instant::now()).expect("in use");
    fake.set_response_of_secret("A", REFUSED);
    fake.set_response_of_secret("B", FakeResponse::NewToken);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(7190) {
        assert!(token.cached(Instant::now()).is_some(), "no request waits");
        advance(1.0).await;
    }
    assert_eq!(fake.called_secrets(), ["A", "A", "B"]);
}

/// Each waits for the other's secret; both end.
#[tokio::test(start_paused = true)]
async fn agents_with_the_same_secrets_in_reverse_order_end() {
    let fake = FakeGettoken::new(7200);
    fake.set_default_response(REFUSED);
    fake.set_delay(0.2);
    let cache = fake.service();
    let (one, other) = (agent(&cache, &["A", "B"]), agent(&cache, &["B", "A"]));
    let (one, other) = tokio::join!(one.current_or_fetch(), other.current_or_fetch());
    assert_eq!((one.expect_err("refused").errcode(), other.expect_err("refused").errcode()), (40001, 40001));
    assert_eq!(fake.calls(), 2, "{:?}", fake.called_secrets());
}

#[tokio::test(start_paused = true)]
async fn network_failure_tries_no_other_secret() {
    let fake = FakeGettoken::new(7200);
    fake.set_response_of_secret("A", FakeResponse::Errcode(-1));
    let token = agent(&fake.service(), &["A", "B"]);
    token.current_or_fetch().await.expect_err("busy");
    run_ready_tasks().await;
    assert_eq!(fake.called_secrets(), ["A"]);
    fake.set_response_of_secret("A", FakeResponse::Errcode(45009));
    advance(2.0).await;
    token.current_or_fetch().await.expect_err("too many calls");
    run_ready_tasks().await;
    assert_eq!(fake.called_secrets(), ["A", "A"]);
}

#[tokio::test(start_paused = true)]
async fn changed_file_is_tried_at_once_and_counts_no_failure() {
    let fake = FakeGettoken::new(7200);
    let (cache, file) = (fake.service(), TestSecretFile::new("old\n"));
    let token = agent_of(&cache, vec![file.load()], None);
    file.write("new\n");
    fake.set_response_of_secret("old", REFUSED);
    token.current_or_fetch().await.expect("the changed secret works");
    assert_eq!(fake.called_secrets(), ["old", "new"]);
    let counts = cache.refresh_counts();
    assert!(counts.iter().all(|count| count.succeeded || count.count == 0), "{counts:?}");
    let secrets: Vec<_> =
        token.entries().iter().map(|entry| entry.credentials().secret.expose().to_owned()).collect();
    assert_eq!(secrets, ["new"]);
    assert_eq!(token.former_entries().len(), 1, "passes made under it serve on");
}

/// A changed secret comes before the second one, and no third is tried.
#[tokio::test(start_paused = true)]
async fn wrong_changed_secret_is_followed_by_the_backoff() {
    let fake = FakeGettoken::new(7200);
    let (cache, file) = (fake.service(), TestSecretFile::new("old\n"));
    let token = agent_of(&cache, vec![file.load(), plain("B")], None);
    for wrong in ["old", "new"] {
        fake.set_response_of_secret(wrong, REFUSED);
    }
    file.write("new\n");
    for _ in 0..20 {
        token.current_or_fetch().await.expect_err("refused");
        run_ready_tasks().await;
    }
    assert_eq!(fake.called_secrets(), ["old", "new"]);
    advance(80.0).await;
    token.current_or_fetch().await.expect("the other secret is next in turn");
    assert_eq!(fake.called_secrets(), ["old", "new", "new", "B"]);
}

#[tokio::test(start_paused = true)]
async fn unusable_file_keeps_the_secret() {
    let fake = FakeGettoken::new(7200);
    fake.set_default_response(REFUSED);
    for content in ["", "changeme\n", "two words\n", "WECOM_SECRET=abc\n"] {
        let file = TestSecretFile::new("old\n");
        let token = agent_of(&fake.service(), vec![file.load()], None);
        file.write(content);
        let before = fake.calls();
        token.current_or_fetch().await.expect_err("refused");
        run_ready_tasks().await;
        assert_eq!(fake.calls(), before + 1, "{content:?}");
        assert_eq!(token.entries()[0].credentials().secret.expose(), "old");
    }
}

#[tokio::test(start_paused = true)]
async fn reload_keeps_the_secret_in_use_while_it_is_listed() {
    let fake = FakeGettoken::new(7200);
    fake.set_response_of_secret("A", REFUSED);
    let cache = fake.service();
    let before = agent(&cache, &["A", "B"]);
    let used = before.current_or_fetch().await.expect("the second secret works");
    for secrets in [&["A", "B"][..], &["B", "A"], &["B"], &["C", "B"]] {
        let after = agent_after(&cache, secrets, Some(&before));
        let cached = after.cached(Instant::now()).expect("the token is kept");
        assert!(cached.is_same_as(&used), "{secrets:?}");
    }
    assert!(agent_after(&cache, &["A", "B"], Some(&before)).is_same_as(&before));
    let after = agent_after(&cache, &["A", "C"], Some(&before));
    assert!(after.cached(Instant::now()).is_none());
    // The refused one is in backoff, so the new one is tried alone.
    after.current_or_fetch().await.expect("a token");
    assert_eq!(fake.called_secrets(), ["A", "B", "C"]);
}

#[tokio::test(start_paused = true)]
async fn same_secret_twice_is_tried_once() {
    let fake = FakeGettoken::new(7200);
    fake.set_default_response(REFUSED);
    let token = agent(&fake.service(), &["A", "A"]);
    assert!(matches!(token, AgentToken::Fixed(_)));
    token.current_or_fetch().await.expect_err("refused");
    run_ready_tasks().await;
    assert_eq!(fake.called_secrets(), ["A"]);
}
