//! Wrong keys: their refusals are held back, and nobody else waits for it.

use std::time::Duration;

use http::Request;
use tokio::time::Instant;

use crate::{
    stage::{Caller, KEYED, Stage, USER_GET, key, soon},
    wire::Line,
};

/// So long at least, but for what clocks are rounded by.
const HELD_BACK: Duration = Duration::from_millis(95);

fn with(key: &str) -> http::request::Builder {
    Request::get(format!("/hr{USER_GET}")).header("x-api-key", key)
}

async fn wrong(caller: &mut Caller) -> Duration {
    let began = Instant::now();
    caller.call(with("a-guess-of-somebody"), "").await.is_own("unauthenticated", 401, 40001);
    began.elapsed()
}

/// Shows so many wrong keys that the next ones are held back.
async fn guess_too_often(caller: &mut Caller) {
    for _ in 0..12 {
        wrong(caller).await;
    }
}

#[tokio::test]
async fn wrong_keys_are_held_back_and_good_ones_are_not() {
    for http2 in [false, true] {
        let stage = Stage::with(KEYED).await;
        let connect = async || match http2 {
            true => Caller::http2(stage.address()).await,
            false => Caller::http1(stage.address()).await,
        };
        let mut guesser = connect().await;
        guess_too_often(&mut guesser).await;
        // From the same address, on a new connection and on the guesser's own, while another guess is held back.
        let mut honest = connect().await;
        let during = async {
            let began = Instant::now();
            for _ in 0..20 {
                honest.call(with(&key("crm")), "").await.is_ok();
            }
            began.elapsed()
        };
        let guessing = async {
            let began = Instant::now();
            for _ in 0..30 {
                assert!(wrong(&mut guesser).await >= HELD_BACK);
            }
            began.elapsed()
        };
        let (guessed, took) = tokio::join!(guessing, during);
        assert!(took < guessed, "{took:?} {guessed:?}");
        guesser.call(with(&key("crm")), "").await.is_ok();
        // To show none is no guess.
        let began = Instant::now();
        for _ in 0..20 {
            guesser.call(Request::get(format!("/hr{USER_GET}")), "").await.is_own(
                "unauthenticated",
                401,
                40001,
            );
        }
        assert!(began.elapsed() < 20 * HELD_BACK, "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn wrong_secrets_of_gettoken_are_held_back_too() {
    let stage = Stage::with(KEYED).await;
    let mut caller = Caller::http1(stage.address()).await;
    let began = Instant::now();
    let target = "/cgi-bin/gettoken?corpid=ww1234567890abcdef&corpsecret=a-guess";
    for _ in 0..20 {
        assert_eq!(caller.call(Request::get(target), "").await.errcode(), 40001);
    }
    assert!(began.elapsed() > 5 * HELD_BACK, "{:?}", began.elapsed());
}

#[tokio::test]
async fn held_back_guesses_keep_nobody_out_of_a_full_proxy() {
    let stage = Stage::with(&KEYED.replacen("[upstream]", "max_connections = 4\n[upstream]", 1)).await;
    guess_too_often(&mut Caller::http1(stage.address()).await).await;
    let guess = format!("GET /hr{USER_GET} HTTP/1.1\r\nHost: x\r\nX-Api-Key: a-guess-of-somebody\r\n\r\n");
    let mut guessers = Vec::new();
    for _ in 0..4 {
        let mut line = soon(Line::to(stage.address())).await;
        line.say(guess.repeat(20)).await.expect("it is taken");
        guessers.push(line);
    }
    // Before the first of them has had its last answer.
    let began = Instant::now();
    Caller::http1(stage.address()).await.call(with(&key("crm")), "").await.is_ok();
    assert!(began.elapsed() < 15 * HELD_BACK, "{:?}", began.elapsed());
}
