//! Close of a connection whose client reads nothing.

use std::{pin::Pin, task::Context};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio::{
    io::AsyncWrite,
    net::UnixStream,
    time::{Duration, Instant, timeout},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};

use super::*;
use crate::{
    http1::io::{RecordStream, Stream},
    server::{
        LINGER_TIMEOUT,
        connection_limit::{ConnectionLimiter, EvictionPolicy},
    },
};

/// Both ends of a TLS connection.
async fn tls_pair() -> (Stream, TlsStream<UnixStream>) {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(signing_key.serialize_der()));
    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone()).expect("a root");
    let provider = Arc::new(aws_lc_rs::default_provider());
    let server = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .expect("an identity");
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (client_end, server_end) = UnixStream::pair().expect("a pair");
    let name = "localhost".try_into().expect("a name");
    let (server_end, client_end) = tokio::join!(
        TlsAcceptor::from(Arc::new(server)).accept(RecordStream::new(Stream::Unix(server_end))),
        TlsConnector::from(Arc::new(client)).connect(name, client_end),
    );
    (Stream::ServerTls(Box::new(server_end.expect("a handshake"))), client_end.expect("a handshake"))
}

#[tokio::test(start_paused = true)]
async fn close_times_out_when_client_reads_nothing() {
    for may_be_sending in [false, true] {
        let (mut stream, _client) = tls_pair().await;
        let mut fill = |cx: &mut Context<'_>| Pin::new(&mut stream).poll_write(cx, &[0; 16 * 1024]);
        while poll_fn(|cx| Poll::Ready(fill(cx).is_ready())).await {}
        let transport = Transport::new(stream);
        let permit = ConnectionLimiter::new(1, EvictionPolicy::KeepActive).try_acquire().expect("a permit");
        let started = Instant::now();
        let closed = timeout(10 * LINGER_TIMEOUT, lingering_close(&transport, may_be_sending, &permit)).await;
        assert_eq!(closed, Ok(()), "the close times out");
        assert!(started.elapsed() >= LINGER_TIMEOUT - Duration::from_millis(1), "not before the time-out");
    }
}
