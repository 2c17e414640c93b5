use super::*;

#[tokio::test]
async fn control_calls_match_the_methods() {
    let wecom = start_simulator().await;
    let first = fetch_token(&wecom).await;
    let line = format!("GET /cgi-bin/user/get?userid=lisi&access_token={first}");
    for (call_line, errcode) in [
        ("POST /control/fail?errcode=60020&path=/cgi-bin/user/get&agent=hr&count=1", 60020),
        ("POST /control/delay?ms=1&count=1", 0),
        ("POST /control/pieces?bytes=3&count=1", 0),
        ("POST /control/expire?agent=hr", 42001),
        ("POST /control/same-token?agent=hr&on=true", 42001),
    ] {
        let response = control(&wecom, call_line, "").await;
        assert_eq!(
            (response.status, &response.body[..]),
            (StatusCode::OK, &b"{\"ok\":true}\n"[..]),
            "{call_line}"
        );
        assert_eq!(call(&wecom, &line).await.errcode(), errcode, "{call_line}");
    }
    assert_eq!(fetch_token(&wecom).await, first);
    control(&wecom, "POST /control/same-token?agent=hr&on=false", "").await;
    assert_ne!(fetch_token(&wecom).await, first);
    control(&wecom, "POST /control/answer?status=418&type=text/plain&count=1", "tea").await;
    let teapot = call(&wecom, &line).await;
    assert_eq!((teapot.status, &teapot.body[..]), (StatusCode::IM_A_TEAPOT, &b"tea"[..]));
    control(&wecom, "POST /control/drop?path=/cgi-bin/user/get", "").await;
    assert!(send(&wecom, request(&line, "")).await.is_err());
    control(&wecom, "POST /control/secret?agent=hr&secret=new", "").await;
    assert_eq!(call(&wecom, &format!("GET /cgi-bin/gettoken?{HR_CREDENTIALS}")).await.errcode(), 40001);
    control(&wecom, "POST /control/agents", r#"{"name":"it","corpid":"wwx","secret":"s","agentid":7}"#).await;
    assert_eq!(call(&wecom, "GET /cgi-bin/gettoken?corpid=wwx&corpsecret=s").await.errcode(), 0);
    control(&wecom, "POST /control/reset", "").await;
    assert_eq!(wecom.requests().len(), 0);
}

#[tokio::test]
async fn control_state_shows_no_secrets() {
    let wecom = start_simulator().await;
    let token = fetch_token(&wecom).await;
    let message = r#"{"touser":"lisi","agentid":"1000002","msgtype":"text","text":{"content":"x"}}"#;
    send(&wecom, request(&format!("POST /cgi-bin/message/send?access_token={token}"), message))
        .await
        .unwrap();
    let messages = control(&wecom, "GET /control/messages", "").await.json();
    assert_eq!((&messages[0]["seq"], &messages[0]["body"]["touser"]), (&2.into(), &"lisi".into()));
    let requests = control(&wecom, "GET /control/requests?limit=1", "").await;
    assert_eq!(requests.json().as_array().unwrap().len(), 1);
    assert_eq!(requests.json()[0]["query"], "access_token=token#1");
    let state = control(&wecom, "GET /control/state", "").await;
    assert_eq!(state.json()["agents"][0]["token"]["serial"], 1);
    assert_eq!(state.json()["counts"]["executed"]["/cgi-bin/message/send"], 1);
    for response in [requests, state, control(&wecom, "GET /control/requests", "").await] {
        let text = String::from_utf8(response.body.to_vec()).unwrap();
        assert!(!text.contains(&token) && !text.contains("not-a-secret"), "{text}");
    }
    assert!(!format!("{:?} {wecom:?}", Settings::default()).contains("not-a-secret"));
}

#[tokio::test]
async fn invalid_control_call_lists_what_is_allowed() {
    let wecom = start_simulator().await;
    for (line, status, part) in [
        ("POST /control/revoke?agent=unknown", 404, "hr, ops"),
        ("POST /control/revoke", 400, "agent is missing"),
        ("POST /control/revoke?agnet=hr", 400, "allowed: agent"),
        ("GET /control/revoke?agent=hr", 405, "requires POST"),
        ("POST /control/delay?ms=soon", 400, "ms=soon"),
        ("POST /control/drop?when=later", 400, "arrival, before, head or body"),
        ("POST /control/fail", 400, "errcode or status"),
        ("POST /control/fail?status=99", 400, "200 to 599"),
        ("POST /control/agents", 400, "corpid"),
        ("GET /control/nothing", 404, "GET /control lists"),
    ] {
        let response = control(&wecom, line, "").await;
        let message = response.json()["error"].as_str().unwrap().to_owned();
        assert!(
            response.status.as_u16() == status && message.contains(part),
            "{line}: {} {message}",
            response.status
        );
    }
}

#[tokio::test]
async fn help_names_every_call() {
    let wecom = start_simulator().await;
    let help = control(&wecom, "GET /control", "").await;
    let help = String::from_utf8(help.body.to_vec()).unwrap();
    let all = control(&wecom, "GET /control/nothing", "").await.json()["error"].as_str().unwrap().to_owned();
    let (_, names) = all.rsplit_once(": ").unwrap();
    for name in names.split(", ") {
        assert!(help.contains(&format!("A/control/{name}")), "{name}");
    }
}
