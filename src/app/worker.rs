//! The workers: a thread each, with a runtime, an upstream pool and a share of the connections of its own.

use std::{io, rc::Rc, sync::Arc, thread};

use arc_swap::ArcSwap;
use tokio::{
    runtime::{Builder, LocalOptions},
    sync::{mpsc, watch},
    task::spawn_local,
};

use crate::{
    directory::Directory,
    proxy::{Proxy, ProxySettings, Sinks},
    server::{self, BoundListener, Server},
    upstream::{Settings, Upstream},
};

/// What every worker is given.
#[derive(Clone)]
pub(super) struct WorkerSpec {
    pub(super) server: Arc<Server>,
    pub(super) bound: Arc<Vec<BoundListener>>,
    pub(super) directory: Arc<ArcSwap<Directory>>,
    pub(super) settings: Arc<ProxySettings>,
    pub(super) upstream: Arc<Settings>,
    pub(super) ended: watch::Receiver<bool>,
    /// Held by every listener as long as it is open.
    pub(super) open_guard: mpsc::Sender<()>,
}

impl WorkerSpec {
    /// Starts a worker on a thread of its own.
    pub(super) fn spawn(self, nth: usize, books: Sinks) -> io::Result<thread::JoinHandle<()>> {
        let Self { server, bound, directory, settings: rules, upstream, ended, open_guard: open } = self;
        let work = move || -> io::Result<()> {
            let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
            runtime.block_on(async {
                let proxy = Rc::new(Proxy::new(directory, rules, Upstream::new(upstream), Rc::new(books)));
                run_worker(bound, &server, &proxy, open, ended).await
            })
        };
        thread::Builder::new().name(format!("worker-{nth}")).spawn(move || {
            if let Err(error) = work() {
                tracing::error!(%error, "a worker ended");
            }
        })
    }
}

/// One worker's life: accept from every listener until told to stop, then serve what is open until told to end.
async fn run_worker(
    bound: Arc<Vec<BoundListener>>,
    server: &Arc<Server>,
    proxy: &Rc<Proxy>,
    open: mpsc::Sender<()>,
    mut ended: watch::Receiver<bool>,
) -> io::Result<()> {
    for bound in bound.iter() {
        let (serving, open) =
            (server::serve(bound.worker_listener()?, server.clone(), proxy.clone()), open.clone());
        spawn_local(async move {
            serving.await;
            drop(open);
        });
    }
    drop((bound, open));
    let _ = ended.wait_for(|ended| *ended).await;
    Ok(())
}
