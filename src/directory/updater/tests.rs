use std::{future::pending, pin::Pin};

use tokio::runtime::Handle;

use super::*;
use crate::{
    config::{Config, SecretMode},
    tokens::{Credentials, FetchError, FetchToken, RefreshSettings},
    wecom::response::GettokenResponse,
};

/// Fetches nothing.
struct NoFetch;

impl FetchToken for NoFetch {
    fn fetch<'a>(
        &'a self,
        _: &'a Credentials,
    ) -> Pin<Box<dyn Future<Output = Result<GettokenResponse, FetchError>> + Send + 'a>> {
        Box::pin(pending())
    }
}

fn config(agents: &[&str]) -> Config {
    let agents =
        agents.iter().map(|name| format!("[agents.{name}]\ncorpid = \"ww1\"\nsecret = \"of-{name}\"\n"));
    let text = "[server]\nlisten = \"127.0.0.1:0\"\nopen = true\n".to_owned() + &agents.collect::<String>();
    config::load_input("test", text.as_bytes(), &|_| None, SecretMode::Required).expect("a valid file")
}

#[tokio::test]
async fn removed_agents_are_pruned_at_two_reloads() {
    let settings =
        RefreshSettings { refresh_ahead: std::time::Duration::from_secs(600), renewals_per_hour: None };
    let tokens = TokenCache::new(Box::new(NoFetch), Handle::current(), settings);
    let limits = RateLimiterFactory::default();
    let directory = Directory::new(&mut config(&["a", "b"]), &tokens, &limits);
    let updater = DirectoryUpdater::new(Arc::new(ArcSwap::from_pointee(directory)), tokens, limits);
    let reload = |agents: &[&str]| {
        updater.replace_files(&mut config(agents));
        updater.take_prune()
    };
    assert!(!reload(&["a", "b"]) && !reload(&["a", "b", "c"]), "none was removed");
    assert_eq!([reload(&["a", "c"]), reload(&["a", "c"]), reload(&["a", "c"])], [true, true, false]);
}
