use std::time::Duration;

use super::*;

#[tokio::test]
async fn gettoken_answers_in_this_very_form_and_with_the_same_token_while_it_serves() {
    let wecom = simulator().await;
    let got = call(&wecom, &format!("GET /cgi-bin/gettoken?{HR}")).await;
    let token = token(&wecom).await;
    let text = format!(r#"{{"errcode":0,"errmsg":"ok","access_token":"{token}","expires_in":7200}}"#);
    assert_eq!(got.body, text);
    assert_eq!(got.header("content-type"), "application/json; charset=UTF-8");
    assert_eq!((got.header("error-code"), got.header("error-msg")), ("0", "ok"));
    assert_eq!(token.len(), 214);
    assert!(token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)));
    let posted = call(&wecom, &format!("POST /cgi-bin/gettoken?{HR}")).await;
    assert_eq!(posted.body, text);
    assert_eq!((wecom.gettoken_count("hr").unwrap(), wecom.gettoken_count("ops").unwrap()), (3, 0));
    assert!(wecom.gettoken_count("nobody").unwrap_err().to_string().contains("hr, ops"));
}

#[tokio::test]
async fn gettoken_says_what_is_wrong_with_a_credential() {
    let wecom = simulator().await;
    for (query, errcode) in [
        ("corpsecret=x", 41002),
        ("corpid=&corpsecret=x", 41002),
        ("corpid=ww1234567890abcdef", 41004),
        ("corpid=ww0&corpsecret=x", 40013),
        ("corpid=ww1234567890abcdef&corpsecret=x", 40001),
    ] {
        let got = call(&wecom, &format!("GET /cgi-bin/gettoken?{query}")).await;
        assert_eq!((got.status, got.errcode()), (StatusCode::OK, errcode), "{query}");
        assert_eq!(got.header("error-code"), errcode.to_string());
    }
    assert_eq!(wecom.look(|seen| (seen.gettokens(), seen.gettokens_of("hr"))), (5, 0));
}

#[tokio::test]
async fn gettoken_has_a_limit_per_agent() {
    let settings = Settings { gettoken_limit: Some(2), ..Settings::default() };
    let wecom = Simulator::local(settings).await.unwrap();
    let line = format!("GET /cgi-bin/gettoken?{HR}");
    let codes = [call(&wecom, &line).await.errcode(), call(&wecom, &line).await.errcode()];
    assert_eq!(codes, [0, 0]);
    assert_eq!(call(&wecom, &line).await.errcode(), 45009);
}

#[tokio::test]
async fn a_token_serves_from_the_query_only_and_until_it_is_void() {
    let wecom = simulator().await;
    let first = token(&wecom).await;
    let line = |token: &str| format!("GET /cgi-bin/user/get?access_token={token}&userid=lisi");
    assert_eq!(call(&wecom, &line(&first)).await.json()["name"], "李四");
    assert_eq!(call(&wecom, &line("")).await.errcode(), 41001);
    assert_eq!(call(&wecom, "GET /cgi-bin/user/get?userid=lisi").await.errcode(), 41001);
    assert_eq!(call(&wecom, &line("no-such-token")).await.errcode(), 40014);
    wecom.revoke("ops").unwrap();
    assert_eq!(call(&wecom, &line(&first)).await.errcode(), 0);
    wecom.revoke("hr").unwrap();
    assert_eq!(call(&wecom, &line(&first)).await.errcode(), 40014);
    let second = token(&wecom).await;
    assert_ne!(first, second);
    assert_eq!(call(&wecom, &line(&second)).await.errcode(), 0);
    wecom.expire("hr").unwrap();
    assert_eq!(call(&wecom, &line(&second)).await.errcode(), 42001);
    assert_eq!(call(&wecom, &line(&first)).await.errcode(), 40014);
    wecom.same_token("hr", true).unwrap();
    assert_eq!(token(&wecom).await, second);
    assert_eq!(call(&wecom, &line(&second)).await.errcode(), 42001);
}

#[tokio::test]
async fn a_token_expires_by_itself_and_says_so_in_whole_seconds() {
    let settings = Settings { token_lifetime: Duration::ZERO, ..Settings::default() };
    let wecom = Simulator::local(settings).await.unwrap();
    let first = token(&wecom).await;
    let got = call(&wecom, &format!("GET /cgi-bin/user/get?access_token={first}&userid=lisi")).await;
    assert_eq!(got.errcode(), 42001);
    assert_eq!(call(&wecom, &format!("GET /cgi-bin/gettoken?{HR}")).await.json()["expires_in"], 1);
    assert_ne!(token(&wecom).await, first);
}

#[tokio::test]
async fn a_new_secret_voids_what_was_got_with_the_old() {
    let wecom = simulator().await;
    let token = token(&wecom).await;
    wecom.reset_secret("hr", "another").unwrap();
    assert_eq!(call(&wecom, &format!("GET /cgi-bin/gettoken?{HR}")).await.errcode(), 40001);
    assert_eq!(call(&wecom, &format!("GET /cgi-bin/tag/list?access_token={token}")).await.errcode(), 40014);
    let line = "GET /cgi-bin/gettoken?corpid=ww1234567890abcdef&corpsecret=another";
    assert_eq!(call(&wecom, line).await.errcode(), 0);
}

#[tokio::test]
async fn a_revocation_among_a_thousand_requests_is_exact() {
    let wecom = simulator().await;
    let token = token(&wecom).await;
    let path = "/cgi-bin/user/get";
    let line = format!("GET {path}?userid=lisi&access_token={token}");
    let callers = (0..20).map(|_| {
        let (wecom, line) = (wecom.clone(), line.clone());
        tokio::spawn(async move {
            let mut sender = open(wecom.api_addr()).await;
            let mut codes = Vec::new();
            for _ in 0..50 {
                let answer = sender.send_request(request(&line, "")).await.unwrap();
                codes.push(read(answer).await.unwrap().errcode());
            }
            codes
        })
    });
    let callers: Vec<_> = callers.collect();
    wecom.wait_until(|seen| seen.executed("/cgi-bin/user/get") >= 100).await.unwrap();
    wecom.revoke("hr").unwrap();
    let mut codes = Vec::new();
    for caller in callers {
        codes.extend(caller.await.unwrap());
    }
    let served = codes.iter().filter(|code| **code == 0).count() as u64;
    assert!((100..1000).contains(&served), "{served}");
    assert_eq!(codes.iter().filter(|code| **code == 40014).count() as u64, 1000 - served);
    assert_eq!(wecom.executed(path), served);
    // In the order of judgement: those before the revocation, then those after it.
    let judged: Vec<_> = wecom.requests().into_iter().filter(|record| record.path == path).collect();
    assert!(judged.is_sorted_by_key(|record| record.errcode));
    assert!(judged.iter().all(|record| record.executed == (record.errcode == Some(0))));
    assert_eq!(wecom.look(|seen| seen.answered(40014)), 1000 - served);
}
