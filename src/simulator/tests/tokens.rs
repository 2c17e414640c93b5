use std::time::Duration;

use super::*;

#[tokio::test]
async fn gettoken_repeats_the_token_while_it_is_valid() {
    let wecom = start_simulator().await;
    let response = call(&wecom, &format!("GET /cgi-bin/gettoken?{HR_CREDENTIALS}")).await;
    let token = fetch_token(&wecom).await;
    let text = format!(r#"{{"errcode":0,"errmsg":"ok","access_token":"{token}","expires_in":7200}}"#);
    assert_eq!(response.body, text);
    assert_eq!(response.header("content-type"), "application/json; charset=UTF-8");
    assert_eq!((response.header("error-code"), response.header("error-msg")), ("0", "ok"));
    assert_eq!(token.len(), 214);
    assert!(token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)));
    let posted = call(&wecom, &format!("POST /cgi-bin/gettoken?{HR_CREDENTIALS}")).await;
    assert_eq!(posted.body, text);
    assert_eq!((wecom.gettoken_count("hr").unwrap(), wecom.gettoken_count("ops").unwrap()), (3, 0));
    assert!(wecom.gettoken_count("unknown").unwrap_err().to_string().contains("hr, ops"));
}

#[tokio::test]
async fn gettoken_with_bad_credentials_returns_the_errcode() {
    let wecom = start_simulator().await;
    for (query, errcode) in [
        ("corpsecret=x", 41002),
        ("corpid=&corpsecret=x", 41002),
        ("corpid=ww1234567890abcdef", 41004),
        ("corpid=ww0&corpsecret=x", 40013),
        ("corpid=ww1234567890abcdef&corpsecret=x", 40001),
    ] {
        let response = call(&wecom, &format!("GET /cgi-bin/gettoken?{query}")).await;
        assert_eq!((response.status, response.errcode()), (StatusCode::OK, errcode), "{query}");
        assert_eq!(response.header("error-code"), errcode.to_string());
    }
    assert_eq!(
        wecom.observe(|observed| (observed.gettoken_count(), observed.gettoken_count_of("hr"))),
        (5, 0)
    );
}

#[tokio::test]
async fn gettoken_beyond_the_agent_limit_returns_45009() {
    let settings = Settings { gettoken_limit: Some(2), ..Settings::default() };
    let wecom = Simulator::start_local(settings).await.unwrap();
    let line = format!("GET /cgi-bin/gettoken?{HR_CREDENTIALS}");
    let codes = [call(&wecom, &line).await.errcode(), call(&wecom, &line).await.errcode()];
    assert_eq!(codes, [0, 0]);
    assert_eq!(call(&wecom, &line).await.errcode(), 45009);
}

#[tokio::test]
async fn token_is_accepted_only_in_the_query_until_revoked() {
    let wecom = start_simulator().await;
    let first = fetch_token(&wecom).await;
    let line = |token: &str| format!("GET /cgi-bin/user/get?access_token={token}&userid=lisi");
    assert_eq!(call(&wecom, &line(&first)).await.json()["name"], "李四");
    assert_eq!(call(&wecom, &line("")).await.errcode(), 41001);
    assert_eq!(call(&wecom, "GET /cgi-bin/user/get?userid=lisi").await.errcode(), 41001);
    assert_eq!(call(&wecom, &line("no-such-token")).await.errcode(), 40014);
    wecom.revoke_tokens("ops").unwrap();
    assert_eq!(call(&wecom, &line(&first)).await.errcode(), 0);
    wecom.revoke_tokens("hr").unwrap();
    assert_eq!(call(&wecom, &line(&first)).await.errcode(), 40014);
    let second = fetch_token(&wecom).await;
    assert_ne!(first, second);
    assert_eq!(call(&wecom, &line(&second)).await.errcode(), 0);
    wecom.expire_tokens("hr").unwrap();
    assert_eq!(call(&wecom, &line(&second)).await.errcode(), 42001);
    assert_eq!(call(&wecom, &line(&first)).await.errcode(), 40014);
    wecom.reissue_same_token("hr", true).unwrap();
    assert_eq!(fetch_token(&wecom).await, second);
    assert_eq!(call(&wecom, &line(&second)).await.errcode(), 42001);
}

#[tokio::test]
async fn token_expires_after_its_lifetime() {
    let settings = Settings { token_lifetime: Duration::ZERO, ..Settings::default() };
    let wecom = Simulator::start_local(settings).await.unwrap();
    let first = fetch_token(&wecom).await;
    let response = call(&wecom, &format!("GET /cgi-bin/user/get?access_token={first}&userid=lisi")).await;
    assert_eq!(response.errcode(), 42001);
    assert_eq!(
        call(&wecom, &format!("GET /cgi-bin/gettoken?{HR_CREDENTIALS}")).await.json()["expires_in"],
        1
    );
    assert_ne!(fetch_token(&wecom).await, first);
}

#[tokio::test]
async fn secret_reset_revokes_tokens_of_the_old_secret() {
    let wecom = start_simulator().await;
    let token = fetch_token(&wecom).await;
    wecom.reset_secret("hr", "another").unwrap();
    assert_eq!(call(&wecom, &format!("GET /cgi-bin/gettoken?{HR_CREDENTIALS}")).await.errcode(), 40001);
    assert_eq!(call(&wecom, &format!("GET /cgi-bin/tag/list?access_token={token}")).await.errcode(), 40014);
    let line = "GET /cgi-bin/gettoken?corpid=ww1234567890abcdef&corpsecret=another";
    assert_eq!(call(&wecom, line).await.errcode(), 0);
}

#[tokio::test]
async fn revocation_under_a_thousand_requests_is_exact() {
    let wecom = start_simulator().await;
    let token = fetch_token(&wecom).await;
    let path = "/cgi-bin/user/get";
    let line = format!("GET {path}?userid=lisi&access_token={token}");
    let clients = (0..20).map(|_| {
        let (wecom, line) = (wecom.clone(), line.clone());
        tokio::spawn(async move {
            let mut sender = connect(wecom.api_addr()).await;
            let mut codes = Vec::new();
            for _ in 0..50 {
                let response = sender.send_request(request(&line, "")).await.unwrap();
                codes.push(read_response(response).await.unwrap().errcode());
            }
            codes
        })
    });
    let clients: Vec<_> = clients.collect();
    wecom.wait_until(|observed| observed.executed_count("/cgi-bin/user/get") >= 100).await.unwrap();
    wecom.revoke_tokens("hr").unwrap();
    let mut codes = Vec::new();
    for client in clients {
        codes.extend(client.await.unwrap());
    }
    let served = codes.iter().filter(|code| **code == 0).count() as u64;
    assert!((100..1000).contains(&served), "{served}");
    assert_eq!(codes.iter().filter(|code| **code == 40014).count() as u64, 1000 - served);
    assert_eq!(wecom.executed_count(path), served);
    // In the order of authorization: first those before the revocation, then those after it.
    let records: Vec<_> = wecom.requests().into_iter().filter(|record| record.path == path).collect();
    assert!(records.is_sorted_by_key(|record| record.errcode));
    assert!(records.iter().all(|record| record.executed == (record.errcode == Some(0))));
    assert_eq!(wecom.observe(|observed| observed.errcode_count(40014)), 1000 - served);
}
