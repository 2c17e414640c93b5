use std::time::Duration;

use super::*;

async fn get_user(wecom: &Simulator, token: &str) -> hyper::Result<TestResponse> {
    send(wecom, request(&format!("GET /cgi-bin/user/get?userid=lisi&access_token={token}"), "")).await
}

#[tokio::test]
async fn injected_errcodes_and_statuses_are_returned() {
    let wecom = start_simulator().await;
    let token = fetch_token(&wecom).await;
    wecom.inject(Fault::errcode(45009).on_path("/cgi-bin/user/get").for_agent("hr").times(1)).unwrap();
    assert_eq!(get_user(&wecom, "void").await.unwrap().errcode(), 40014);
    let response = get_user(&wecom, &token).await.unwrap();
    assert_eq!((response.status, response.errcode()), (StatusCode::OK, 45009));
    assert_eq!(wecom.executed_count("/cgi-bin/user/get"), 0);
    assert_eq!(get_user(&wecom, &token).await.unwrap().errcode(), 0);
    wecom.inject(Fault::status(502).times(1)).unwrap();
    let response = get_user(&wecom, "void").await.unwrap();
    assert_eq!((response.status, response.body.len()), (StatusCode::BAD_GATEWAY, 0));
    wecom.inject(Fault::errcode(-1).with_status(503).on_path("/cgi-bin/gettoken")).unwrap();
    let response = call(&wecom, &format!("GET /cgi-bin/gettoken?{HR_CREDENTIALS}")).await;
    assert_eq!((response.status, response.errcode()), (StatusCode::SERVICE_UNAVAILABLE, -1));
    wecom.reset();
    wecom.inject(Fault::response(200, "text/html", "<html>").times(1)).unwrap();
    let response = call(&wecom, &format!("GET /cgi-bin/gettoken?{HR_CREDENTIALS}")).await;
    assert_eq!((response.header("content-type"), &response.body[..]), ("text/html", &b"<html>"[..]));
    let zipped = Fault::response(200, "application/json", "{}")
        .with_header("content-encoding", "gzip")
        .authorized_only();
    wecom.inject(zipped.times(1)).unwrap();
    assert_eq!(get_user(&wecom, "void").await.unwrap().errcode(), 40014);
    assert_eq!(get_user(&wecom, &token).await.unwrap().header("content-encoding"), "gzip");
    assert!(wecom.inject(Fault::hold().for_agent("unknown")).is_err());
}

#[tokio::test]
async fn held_responses_wait_after_the_token_check() {
    let wecom = start_simulator().await;
    let token = fetch_token(&wecom).await;
    wecom.inject(Fault::hold().on_path("/cgi-bin/user/get").times(2)).unwrap();
    let callers: Vec<_> = (0..2)
        .map(|_| {
            let (wecom, token) = (wecom.clone(), token.clone());
            tokio::spawn(async move { get_user(&wecom, &token).await.unwrap().errcode() })
        })
        .collect();
    wecom
        .wait_until(|observed| observed.executed_count("/cgi-bin/user/get") == 2 && observed.in_flight() == 2)
        .await
        .unwrap();
    wecom.revoke_tokens("hr").unwrap();
    assert_eq!(get_user(&wecom, &token).await.unwrap().errcode(), 40014);
    assert!(callers.iter().all(|task| !task.is_finished()));
    wecom.release_held();
    for task in callers {
        assert_eq!(task.await.unwrap(), 0);
    }
    wecom.wait_until(|observed| observed.in_flight() == 0).await.unwrap();
    assert_eq!(wecom.observe(|observed| observed.max_in_flight()), 3);
}

#[tokio::test]
async fn delays_add_up() {
    let wecom = start_simulator().await;
    wecom.inject(Fault::delay(Duration::from_millis(20)).on_path("/cgi-bin/gettoken")).unwrap();
    wecom.inject(Fault::delay(Duration::from_millis(20))).unwrap();
    let start = std::time::Instant::now();
    fetch_token(&wecom).await;
    assert!(start.elapsed() >= Duration::from_millis(40));
}

#[tokio::test]
async fn dropped_connections_close_at_the_drop_point() {
    let wecom = start_simulator().await;
    let token = fetch_token(&wecom).await;
    for (point, executed) in [(DropPoint::OnArrival, 0), (DropPoint::BeforeResponse, 1)] {
        wecom.inject(Fault::drop(point).on_path("/cgi-bin/user/get")).unwrap();
        assert!(get_user(&wecom, &token).await.err().unwrap().is_incomplete_message());
        assert_eq!(wecom.executed_count("/cgi-bin/user/get"), executed);
    }
    let complete = get_user(&wecom, &token).await.unwrap();
    for point in [DropPoint::AfterHead, DropPoint::MidBody] {
        wecom.inject(Fault::drop(point)).unwrap();
        let line = format!("GET /cgi-bin/user/get?userid=lisi&access_token={token}");
        let response = connect(wecom.api_addr()).await.send_request(request(&line, "")).await.unwrap();
        let mut body = response.into_body();
        assert_eq!(hyper::body::Body::size_hint(&body).exact(), Some(complete.body.len() as u64));
        let mut received = Vec::new();
        while let Ok(frame) = body.frame().await.expect("an error before the end") {
            received.extend_from_slice(&frame.into_data().unwrap());
        }
        let expected = if point == DropPoint::AfterHead { 0 } else { complete.body.len() / 2 };
        assert_eq!(received, complete.body[..expected]);
    }
    assert_eq!(get_user(&wecom, &token).await.unwrap().body, complete.body);
}

#[tokio::test]
async fn bodies_stall_and_are_chunked_as_injected() {
    let wecom = start_simulator().await;
    let token = fetch_token(&wecom).await;
    wecom.inject(Fault::chunked(1).times(1)).unwrap();
    let response = get_user(&wecom, &token).await.unwrap();
    assert_eq!((response.header("transfer-encoding"), response.errcode()), ("chunked", 0));
    wecom.inject(Fault::stall().times(1)).unwrap();
    let line = format!("GET /cgi-bin/user/get?userid=lisi&access_token={token}");
    let mut sender = connect(wecom.api_addr()).await;
    let mut body = sender.send_request(request(&line, "")).await.unwrap().into_body();
    let half = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(half, response.body[..response.body.len() / 2]);
    assert!(tokio::time::timeout(Duration::from_millis(50), body.frame()).await.is_err());
}
