//! One replica loses the way to the store, and the others do not.

use std::{net::SocketAddr, sync::Arc};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};

use super::Replicas;
use crate::{
    redis::{KEY, Redis},
    stage::{OPEN, Stage, USER_GET, wait_for},
};

/// A way to a server that can be cut: what is connected breaks, and what connects is closed at once.
struct Way {
    address: SocketAddr,
    is_cut: watch::Sender<bool>,
}

impl Way {
    async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (is_cut, cut) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut cut = cut.clone();
                tokio::spawn(async move {
                    let pass = async {
                        let mut far = TcpStream::connect(server).await?;
                        copy_bidirectional(&mut near, &mut far).await
                    };
                    tokio::select! {
                        biased;
                        _ = cut.wait_for(|cut| *cut) => {}
                        _ = pass => {}
                    }
                });
            }
        });
        Self { address, is_cut }
    }
}

#[tokio::test]
async fn a_replica_that_is_cut_off_goes_on_by_itself_and_the_others_do_not_notice() {
    let redis = Redis::start().await;
    let mut replicas = Replicas::start(2, &redis.store()).await;
    let way = Way::to(redis.address()).await;
    let store = format!("store = {{ redis = \"redis://{}\", key = \"{KEY}\" }}", way.address);
    let lonely =
        Stage::facing(replicas.first.wecom.api_addr(), &format!("{OPEN}\n[tokens]\n{store}\n")).await;
    let lonely = Arc::new(lonely);
    replicas.others.push(lonely.clone());
    replicas.joined().await;
    replicas.crowd(20).await;
    assert_eq!(replicas.seen(), (1, 60));

    way.is_cut.send_replace(true);
    wait_for("the loss", async || lonely.proxy.store_trouble().is_some()).await;
    assert_eq!(replicas.voided(20).await, 2, "one for those who share, one for it alone");
    for stage in [&replicas.first, &replicas.others[0]] {
        assert_eq!(stage.proxy.store_trouble(), None);
    }
    // A token that it got for itself is no secret to WeCom: it is the one that the others have.
    lonely.get(USER_GET).await.is_ok();

    way.is_cut.send_replace(false);
    replicas.joined().await;
    replicas.renew_once(20).await;
}
