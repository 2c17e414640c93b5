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
    proxy::{Books, Proxy, Rules},
    server::{self, Bound, Server},
    upstream::{Settings, Upstream},
};

/// What every worker is given.
#[derive(Clone)]
pub(super) struct Crew {
    pub(super) server: Arc<Server>,
    pub(super) bound: Arc<Vec<Bound>>,
    pub(super) directory: Arc<ArcSwap<Directory>>,
    pub(super) rules: Arc<Rules>,
    pub(super) upstream: Arc<Settings>,
    pub(super) ended: watch::Receiver<bool>,
    /// Held by every listener as long as it is open.
    pub(super) open: mpsc::Sender<()>,
}

impl Crew {
    /// Starts a worker on a thread of its own.
    pub(super) fn start_worker(self, nth: usize, books: Books) -> io::Result<thread::JoinHandle<()>> {
        let Self { server, bound, directory, rules, upstream, ended, open } = self;
        let work = move || -> io::Result<()> {
            let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
            runtime.block_on(async {
                let proxy = Rc::new(Proxy::new(directory, rules, Upstream::new(upstream), Rc::new(books)));
                work(bound, &server, &proxy, open, ended).await
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
async fn work(
    bound: Arc<Vec<Bound>>,
    server: &Arc<Server>,
    proxy: &Rc<Proxy>,
    open: mpsc::Sender<()>,
    mut ended: watch::Receiver<bool>,
) -> io::Result<()> {
    for bound in bound.iter() {
        let (serving, open) = (server::serve(bound.listener()?, server.clone(), proxy.clone()), open.clone());
        spawn_local(async move {
            serving.await;
            drop(open);
        });
    }
    drop((bound, open));
    let _ = ended.wait_for(|ended| *ended).await;
    Ok(())
}
