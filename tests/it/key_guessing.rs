//! Key guessing: responses to wrong keys are delayed, and no other client waits for that.

use std::time::Duration;

use http::Request;
use tokio::{io::AsyncWriteExt, time::Instant};

use crate::{
    harness::{CONFIG_WITH_CLIENTS, TestClient, TestProxy, USER_GET, client_key, with_timeout},
    raw_http::RawConnection,
};

/// The minimum delay of a response to a wrong key, less clock rounding.
const MIN_DELAY: Duration = Duration::from_millis(95);

fn request_with_key(key: &str) -> http::request::Builder {
    Request::get(format!("/hr{USER_GET}")).header("x-api-key", key)
}

async fn wrong_key_delay(client: &mut TestClient) -> Duration {
    let started = Instant::now();
    client.request(request_with_key("a-guess-of-a-client"), "").await.assert_proxy_error(
        "unauthenticated",
        401,
        40001,
    );
    started.elapsed()
}

/// Sends enough wrong keys that the responses to the next ones are delayed.
async fn exhaust_guesses(client: &mut TestClient) {
    for _ in 0..12 {
        wrong_key_delay(client).await;
    }
}

#[tokio::test]
async fn wrong_keys_are_delayed_and_good_keys_are_not() {
    for http2 in [false, true] {
        let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
        let connect = async || match http2 {
            true => TestClient::connect_http2(proxy.address()).await,
            false => TestClient::connect_http1(proxy.address()).await,
        };
        let mut guesser = connect().await;
        exhaust_guesses(&mut guesser).await;
        // From the same address: on a new connection while guesses are delayed, and then on the guesser's connection.
        let mut valid_client = connect().await;
        let valid = async {
            let started = Instant::now();
            for _ in 0..20 {
                valid_client.request(request_with_key(&client_key("crm")), "").await.assert_ok();
            }
            started.elapsed()
        };
        let guessing = async {
            let started = Instant::now();
            for _ in 0..30 {
                assert!(wrong_key_delay(&mut guesser).await >= MIN_DELAY);
            }
            started.elapsed()
        };
        let (guess_time, valid_time) = tokio::join!(guessing, valid);
        assert!(valid_time < guess_time, "{valid_time:?} {guess_time:?}");
        guesser.request(request_with_key(&client_key("crm")), "").await.assert_ok();
        // A request without a key does not count as a guess.
        let started = Instant::now();
        for _ in 0..20 {
            guesser.request(Request::get(format!("/hr{USER_GET}")), "").await.assert_proxy_error(
                "unauthenticated",
                401,
                40001,
            );
        }
        assert!(started.elapsed() < 20 * MIN_DELAY, "{:?}", started.elapsed());
    }
}

#[tokio::test]
async fn wrong_key_before_fin_is_delayed_and_refused() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    exhaust_guesses(&mut TestClient::connect_http1(proxy.address()).await).await;
    for version in ["1.0", "1.1"] {
        let mut connection = RawConnection::connect(proxy.address()).await;
        let started = Instant::now();
        let request = format!("GET /hr{USER_GET} HTTP/{version}\r\nHost: x\r\nX-Api-Key: a-guess\r\n\r\n");
        connection.send(request).await.expect("sent");
        connection.stream.shutdown().await.expect("a socket");
        let (received, end) = connection.read_to_end().await;
        assert!(received.starts_with(format!("HTTP/{version} 401 ").as_bytes()), "{received:?}");
        assert!(end.is_ok() && started.elapsed() >= MIN_DELAY, "{end:?} {:?}", started.elapsed());
    }
}

#[tokio::test]
async fn wrong_gettoken_secrets_are_delayed() {
    let proxy = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let mut client = TestClient::connect_http1(proxy.address()).await;
    let started = Instant::now();
    let target = "/cgi-bin/gettoken?corpid=ww1234567890abcdef&corpsecret=a-guess";
    for _ in 0..20 {
        assert_eq!(client.request(Request::get(target), "").await.errcode(), 40001);
    }
    assert!(started.elapsed() > 5 * MIN_DELAY, "{:?}", started.elapsed());
}

#[tokio::test]
async fn delayed_guesses_yield_connections_in_a_full_proxy() {
    let proxy = TestProxy::start_with_config(&CONFIG_WITH_CLIENTS.replacen(
        "[upstream]",
        "max_connections = 4\n[upstream]",
        1,
    ))
    .await;
    exhaust_guesses(&mut TestClient::connect_http1(proxy.address()).await).await;
    let guess = format!("GET /hr{USER_GET} HTTP/1.1\r\nHost: x\r\nX-Api-Key: a-guess-of-a-client\r\n\r\n");
    let mut guessers = Vec::new();
    for _ in 0..4 {
        let mut connection = with_timeout(RawConnection::connect(proxy.address())).await;
        connection.send(guess.repeat(20)).await.expect("sent");
        guessers.push(connection);
    }
    // Before the first guesser has its last response.
    let started = Instant::now();
    TestClient::connect_http1(proxy.address())
        .await
        .request(request_with_key(&client_key("crm")), "")
        .await
        .assert_ok();
    assert!(started.elapsed() < 15 * MIN_DELAY, "{:?}", started.elapsed());
}
