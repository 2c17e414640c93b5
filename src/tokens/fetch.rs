//! Calls for tokens, the only ones that carry a secret.

use std::{
    future::Future,
    io,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    thread,
    time::{Duration, SystemTime},
};

use tokio::{
    runtime::{Builder, LocalOptions},
    sync::{mpsc, oneshot},
    task::spawn_local,
    time::timeout,
};

use super::{
    Credentials, FetchError, FetchToken,
    kinds::{access_token, json_call::JsonCall},
};
use crate::{
    config::UpstreamId,
    upstream::{Fetched, Settings, Upstream},
    wecom::response::GettokenResponse,
};

/// Largest gettoken response body.
const MAX_RESPONSE_BYTES: usize = 64 * 1024;
/// Longest time for a response body, beside the timeouts for the connection and the response head.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// Calls gettoken at one upstream.
pub struct GettokenClient {
    upstream: Upstream,
    /// Timeout of a whole call.
    timeout: Duration,
}

impl GettokenClient {
    /// A client without open connections.
    pub fn new(upstream: Arc<Settings>) -> Self {
        let timeout = upstream.max_connect_time() + upstream.response_timeout() + BODY_TIMEOUT;
        Self { upstream: Upstream::new(upstream), timeout }
    }

    /// Timeout of one of the proxy's own calls.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The upstream of its calls.
    pub fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// Calls gettoken once. Also returns the upstream's clock, from the response's Date.
    pub async fn fetch(
        &self,
        credentials: &Credentials,
    ) -> (Option<SystemTime>, Result<GettokenResponse, FetchError>) {
        match timeout(
            self.timeout,
            self.upstream.fetch_buffered(
                &credentials.corpid,
                &access_token::request_target(credentials),
                MAX_RESPONSE_BYTES,
            ),
        )
        .await
        {
            Err(_) => (None, Err(FetchError::TimedOut(self.timeout))),
            Ok(Err(error)) => (None, Err(FetchError::Upstream(error))),
            Ok(Ok(fetched)) => (fetched.date, access_token::parse_response(credentials, fetched)),
        }
    }
}

impl GettokenClient {
    /// Makes a call with a JSON body once.
    pub async fn call(&self, JsonCall { corpid, target, body }: &JsonCall) -> Result<Fetched, FetchError> {
        let calling = self.upstream.call_buffered(corpid, target, body.as_ref(), MAX_RESPONSE_BYTES);
        match timeout(self.timeout, calling).await {
            Err(_) => Err(FetchError::TimedOut(self.timeout)),
            Ok(fetched) => fetched.map_err(FetchError::Upstream),
        }
    }
}

/// Fetches tokens on a thread of its own, because a [`GettokenClient`] stays on one thread.
pub struct GettokenThread(mpsc::UnboundedSender<FetchJob>);

/// A call, and where its response is sent.
enum FetchJob {
    Gettoken(Credentials, oneshot::Sender<Result<GettokenResponse, FetchError>>),
    Call(JsonCall, oneshot::Sender<Result<Fetched, FetchError>>),
}

impl GettokenThread {
    /// Starts the thread, which ends when the `GettokenThread` is dropped. `upstreams`: in the order of their indexes.
    pub fn start(upstreams: Vec<Arc<Settings>>) -> io::Result<Self> {
        let (sender, jobs) = mpsc::unbounded_channel();
        thread::Builder::new().name("gettoken".to_owned()).spawn(
            move || match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
                Ok(runtime) => runtime.block_on(run_jobs(jobs, upstreams)),
                Err(error) => {
                    tracing::error!(%error, "gettoken thread failed to start, no token can be fetched")
                }
            },
        )?;
        Ok(Self(sender))
    }
}

/// Runs jobs concurrently, each at the upstream of its credentials.
async fn run_jobs(mut jobs: mpsc::UnboundedReceiver<FetchJob>, upstreams: Vec<Arc<Settings>>) {
    let clients: Vec<_> =
        upstreams.into_iter().map(|upstream| Rc::new(GettokenClient::new(upstream))).collect();
    while let Some(job) = jobs.recv().await {
        let index = match &job {
            FetchJob::Gettoken(credentials, _) => credentials.upstream.index(),
            FetchJob::Call(..) => UpstreamId::default().index(),
        };
        let Some(client) = clients.get(index).cloned() else { continue };
        // Where the receiver is gone, the call is cancelled.
        spawn_local(async move {
            match job {
                FetchJob::Gettoken(credentials, mut response) => tokio::select! {
                    fetched = client.fetch(&credentials) => drop(response.send(fetched.1)),
                    () = response.closed() => {}
                },
                FetchJob::Call(call, mut response) => tokio::select! {
                    fetched = client.call(&call) => drop(response.send(fetched)),
                    () = response.closed() => {}
                },
            }
        });
    }
}

impl FetchToken for GettokenThread {
    fn fetch<'a>(
        &'a self,
        credentials: &'a Credentials,
    ) -> Pin<Box<dyn Future<Output = Result<GettokenResponse, FetchError>> + Send + 'a>> {
        let (sender, response) = oneshot::channel();
        let sent = self.0.send(FetchJob::Gettoken(credentials.clone(), sender));
        Box::pin(async move {
            match sent {
                Ok(()) => response.await.unwrap_or(Err(FetchError::Cancelled)),
                Err(_) => Err(FetchError::Cancelled),
            }
        })
    }

    fn call(&self, call: JsonCall) -> Pin<Box<dyn Future<Output = Result<Fetched, FetchError>> + Send + '_>> {
        let (sender, response) = oneshot::channel();
        let sent = self.0.send(FetchJob::Call(call, sender));
        Box::pin(async move {
            match sent {
                Ok(()) => response.await.unwrap_or(Err(FetchError::Cancelled)),
                Err(_) => Err(FetchError::Cancelled),
            }
        })
    }
}
