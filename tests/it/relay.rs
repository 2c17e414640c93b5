//! A TCP relay whose connections can go dead without a word, as when a firewall forgets them.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

/// The relay. It runs until its runtime is dropped.
pub struct Relay {
    pub address: SocketAddr,
    /// Connections accepted so far, and how many of the first of them are frozen.
    state: watch::Sender<(usize, usize)>,
    /// Bytes relayed so far, in both directions.
    bytes: Arc<AtomicUsize>,
}

impl Relay {
    /// Relays to `upstream`.
    pub async fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let state = watch::channel((0, 0)).0;
        let (task_state, bytes) = (state.clone(), Arc::<AtomicUsize>::default());
        let counter = bytes.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let number = task_state.borrow().0;
                task_state.send_modify(|(accepted, _)| *accepted += 1);
                let Ok(server) = TcpStream::connect(upstream).await else { continue };
                let ((from_client, to_client), (from_server, to_server)) =
                    (client.into_split(), server.into_split());
                tokio::spawn(pump(from_client, to_server, number, task_state.subscribe(), counter.clone()));
                tokio::spawn(pump(from_server, to_client, number, task_state.subscribe(), counter.clone()));
            }
        });
        Self { address, state, bytes }
    }

    /// The connections that exist now move nothing from now on.
    pub fn freeze(&self) {
        self.state.send_modify(|(accepted, frozen)| *frozen = *accepted);
    }

    /// The number of bytes so far, in both directions.
    pub fn byte_count(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The number of connections so far.
    pub fn connection_count(&self) -> usize {
        self.state.borrow().0
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    number: usize,
    mut state: watch::Receiver<(usize, usize)>,
    bytes: Arc<AtomicUsize>,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = tokio::select! {
            biased;
            () = async { drop(state.wait_for(|(_, frozen)| number < *frozen).await) } => {
                std::future::pending().await
            }
            read = from.read(&mut buffer) => read,
        };
        bytes.fetch_add(*read.as_ref().unwrap_or(&0), Ordering::Relaxed);
        match read {
            Ok(1..) if to.write_all(&buffer[..read.unwrap_or(0)]).await.is_ok() => {}
            _ => break,
        }
    }
    let _ = to.shutdown().await;
}
