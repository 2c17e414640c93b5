//! Worker threads, each with its own runtime, upstream pool and share of the connections.

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
};

/// The parts that every worker needs.
#[derive(Clone)]
pub(super) struct WorkerSpec {
    pub(super) server: Arc<Server>,
    pub(super) bound: Arc<Vec<BoundListener>>,
    pub(super) directory: Arc<ArcSwap<Directory>>,
    pub(super) settings: Arc<ProxySettings>,
    pub(super) ended: watch::Receiver<bool>,
    /// Kept by every listener as long as it is open.
    pub(super) open_guard: mpsc::Sender<()>,
}

impl WorkerSpec {
    /// Starts a worker thread.
    pub(super) fn spawn(self, nth: usize, sinks: Sinks) -> io::Result<thread::JoinHandle<()>> {
        let Self { server, bound, directory, settings, ended, open_guard } = self;
        let work = move || -> io::Result<()> {
            let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
            runtime.block_on(async {
                let proxy = Rc::new(Proxy::new(directory, settings, Rc::new(sinks)));
                run_worker(bound, &server, &proxy, open_guard, ended).await
            })
        };
        thread::Builder::new().name(format!("worker-{nth}")).spawn(move || {
            if let Err(error) = work() {
                tracing::error!(%error, "worker failed");
            }
        })
    }
}

/// Accepts from every listener until the server stops, then serves open connections until `ended`.
async fn run_worker(
    bound: Arc<Vec<BoundListener>>,
    server: &Arc<Server>,
    proxy: &Rc<Proxy>,
    open_guard: mpsc::Sender<()>,
    mut ended: watch::Receiver<bool>,
) -> io::Result<()> {
    server.add_worker();
    for bound in bound.iter() {
        let (serving, open_guard) =
            (server::serve(bound.worker_listener()?, server.clone(), proxy.clone()), open_guard.clone());
        spawn_local(async move {
            serving.await;
            drop(open_guard);
        });
    }
    drop((bound, open_guard));
    let _ = ended.wait_for(|ended| *ended).await;
    Ok(())
}
