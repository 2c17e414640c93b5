//! Wrong keys: their refusals are held back, and nobody else waits for it.

use std::time::Duration;

use http::Request;
use tokio::time::Instant;

use crate::{
    harness::{CONFIG_WITH_CLIENTS, TestClient, TestProxy, USER_GET, client_key, with_timeout},
    raw_http::RawConnection,
};

/// So long at least, but for what clocks are rounded by.
const MIN_DELAY: Duration = Duration::from_millis(95);

fn request_with_key(key: &str) -> http::request::Builder {
    Request::get(format!("/hr{USER_GET}")).header("x-api-key", key)
}

async fn wrong_key_delay(caller: &mut TestClient) -> Duration {
    let began = Instant::now();
    caller.request(request_with_key("a-guess-of-somebody"), "").await.assert_proxy_error(
        "unauthenticated",
        401,
        40001,
    );
    began.elapsed()
}

/// Shows so many wrong keys that the next ones are held back.
async fn exhaust_guesses(caller: &mut TestClient) {
    for _ in 0..12 {
        wrong_key_delay(caller).await;
    }
}

#[tokio::test]
async fn wrong_keys_are_delayed_and_good_keys_are_not() {
    for http2 in [false, true] {
        let stage = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
        let connect = async || match http2 {
            true => TestClient::connect_http2(stage.address()).await,
            false => TestClient::connect_http1(stage.address()).await,
        };
        let mut guesser = connect().await;
        exhaust_guesses(&mut guesser).await;
        // From the same address, on a new connection and on the guesser's own, while another guess is held back.
        let mut honest = connect().await;
        let during = async {
            let began = Instant::now();
            for _ in 0..20 {
                honest.request(request_with_key(&client_key("crm")), "").await.assert_ok();
            }
            began.elapsed()
        };
        let guessing = async {
            let began = Instant::now();
            for _ in 0..30 {
                assert!(wrong_key_delay(&mut guesser).await >= MIN_DELAY);
            }
            began.elapsed()
        };
        let (guessed, took) = tokio::join!(guessing, during);
        assert!(took < guessed, "{took:?} {guessed:?}");
        guesser.request(request_with_key(&client_key("crm")), "").await.assert_ok();
        // To show none is no guess.
        let began = Instant::now();
        for _ in 0..20 {
            guesser.request(Request::get(format!("/hr{USER_GET}")), "").await.assert_proxy_error(
                "unauthenticated",
                401,
                40001,
            );
        }
        assert!(began.elapsed() < 20 * MIN_DELAY, "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn wrong_gettoken_secrets_are_delayed() {
    let stage = TestProxy::start_with_config(CONFIG_WITH_CLIENTS).await;
    let mut caller = TestClient::connect_http1(stage.address()).await;
    let began = Instant::now();
    let target = "/cgi-bin/gettoken?corpid=ww1234567890abcdef&corpsecret=a-guess";
    for _ in 0..20 {
        assert_eq!(caller.request(Request::get(target), "").await.errcode(), 40001);
    }
    assert!(began.elapsed() > 5 * MIN_DELAY, "{:?}", began.elapsed());
}

#[tokio::test]
async fn delayed_guesses_yield_connections_in_a_full_proxy() {
    let stage = TestProxy::start_with_config(&CONFIG_WITH_CLIENTS.replacen(
        "[upstream]",
        "max_connections = 4\n[upstream]",
        1,
    ))
    .await;
    exhaust_guesses(&mut TestClient::connect_http1(stage.address()).await).await;
    let guess = format!("GET /hr{USER_GET} HTTP/1.1\r\nHost: x\r\nX-Api-Key: a-guess-of-somebody\r\n\r\n");
    let mut guessers = Vec::new();
    for _ in 0..4 {
        let mut line = with_timeout(RawConnection::connect(stage.address())).await;
        line.send(guess.repeat(20)).await.expect("it is taken");
        guessers.push(line);
    }
    // Before the first of them has had its last answer.
    let began = Instant::now();
    TestClient::connect_http1(stage.address())
        .await
        .request(request_with_key(&client_key("crm")), "")
        .await
        .assert_ok();
    assert!(began.elapsed() < 15 * MIN_DELAY, "{:?}", began.elapsed());
}
