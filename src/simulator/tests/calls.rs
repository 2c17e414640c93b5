use super::*;

async fn send_authorized(wecom: &Simulator, line: &str, body: impl Into<Bytes>) -> TestResponse {
    let token = fetch_token(wecom).await;
    let separator = if line.contains('?') { '&' } else { '?' };
    send(wecom, request(&format!("{line}{separator}access_token={token}"), body)).await.expect("a response")
}

#[tokio::test]
async fn directory_reads_return_users_departments_and_tags() {
    let wecom = start_simulator().await;
    let user = send_authorized(&wecom, "GET /cgi-bin/user/get?userid=zhangsan", "").await;
    assert!(
        user.body.starts_with(r#"{"errcode":0,"errmsg":"ok","userid":"zhangsan","name":"张三","#.as_bytes())
    );
    assert_eq!(send_authorized(&wecom, "GET /cgi-bin/user/get?userid=unknown", "").await.errcode(), 60111);
    assert_eq!(send_authorized(&wecom, "GET /cgi-bin/user/get", "").await.errcode(), 41009);
    for (line, list, length) in [
        ("GET /cgi-bin/user/simplelist?department_id=1", "userlist", 1),
        ("GET /cgi-bin/user/simplelist?department_id=1&fetch_child=1", "userlist", 6),
        ("GET /cgi-bin/user/list?department_id=3", "userlist", 2),
        ("GET /cgi-bin/department/list", "department", 4),
        ("GET /cgi-bin/department/list?id=2", "department", 1),
        ("GET /cgi-bin/tag/list", "taglist", 2),
        ("GET /cgi-bin/tag/get?tagid=1", "userlist", 2),
    ] {
        let response = send_authorized(&wecom, line, "").await;
        assert_eq!(response.json()[list].as_array().map(Vec::len), Some(length), "{line}");
    }
    assert_eq!(send_authorized(&wecom, "GET /cgi-bin/user/list?department_id=9", "").await.errcode(), 60123);
    assert_eq!(send_authorized(&wecom, "GET /cgi-bin/department/list?id=x", "").await.errcode(), 60123);
    assert_eq!(send_authorized(&wecom, "GET /cgi-bin/tag/get?tagid=9", "").await.errcode(), 40068);
    assert_eq!(wecom.executed_count("/cgi-bin/user/get"), 1);
}

#[tokio::test]
async fn agent_get_of_another_agent_is_refused() {
    let wecom = start_simulator().await;
    let own = send_authorized(&wecom, "GET /cgi-bin/agent/get?agentid=1000002", "").await;
    assert_eq!((own.errcode(), &own.json()["agentid"]), (0, &1_000_002.into()));
    for (query, errcode) in
        [("?agentid=1000003", 301_002), ("?agentid=7", 40056), ("?agentid=x", 40056), ("", 41011)]
    {
        let line = format!("GET /cgi-bin/agent/get{query}");
        assert_eq!(send_authorized(&wecom, &line, "").await.errcode(), errcode, "{query}");
    }
}

#[tokio::test]
async fn directory_changes_are_validated_and_applied() {
    let wecom = start_simulator().await;
    for (line, body, errcode) in [
        ("POST /cgi-bin/department/create", r#"{"name":"测试部","parentid":1}"#, 0),
        ("POST /cgi-bin/department/create", r#"{"name":"测试部","parentid":1}"#, 60008),
        ("POST /cgi-bin/department/create", r#"{"name":"x","parentid":99}"#, 60004),
        ("POST /cgi-bin/department/update", r#"{"id":5,"name":"质量部"}"#, 0),
        ("POST /cgi-bin/department/update", r#"{"id":99,"name":"x"}"#, 60123),
        ("POST /cgi-bin/user/create", r#"{"userid":"new","name":"新人","department":[5]}"#, 0),
        ("POST /cgi-bin/user/create", r#"{"userid":"new","name":"新人","department":[5]}"#, 60102),
        ("POST /cgi-bin/user/create", r#"{"userid":"x","name":"x","department":[99]}"#, 60123),
        ("POST /cgi-bin/user/create", r#"{"userid":"x","department":1}"#, 40035),
        ("POST /cgi-bin/user/update", r#"{"userid":"new","name":"旧人"}"#, 0),
        ("POST /cgi-bin/user/update", r#"{"userid":"x"}"#, 60111),
        ("POST /cgi-bin/tag/create", r#"{"tagname":"夜班"}"#, 0),
        ("POST /cgi-bin/tag/create", r#"{"tagname":"夜班"}"#, 40071),
        ("POST /cgi-bin/tag/update", r#"{"tagid":3,"tagname":"早班"}"#, 0),
        ("POST /cgi-bin/tag/addtagusers", r#"{"tagid":3,"userlist":["new","unknown"]}"#, 0),
        ("POST /cgi-bin/tag/addtagusers", r#"{"tagid":3,"userlist":["unknown"]}"#, 40070),
        ("POST /cgi-bin/tag/addtagusers", r#"{"tagid":99,"userlist":["new"]}"#, 40068),
    ] {
        assert_eq!(send_authorized(&wecom, line, body).await.errcode(), errcode, "{line} {body}");
    }
    let user = send_authorized(&wecom, "GET /cgi-bin/user/get?userid=new", "").await.json();
    assert_eq!((user["name"].as_str(), &user["department"]), (Some("旧人"), &serde_json::json!([5])));
    let tag = send_authorized(&wecom, "GET /cgi-bin/tag/get?tagid=3", "").await.json();
    assert_eq!((tag["tagname"].as_str(), tag["userlist"][0]["userid"].as_str()), (Some("早班"), Some("new")));
    for (line, body, errcode) in [
        ("POST /cgi-bin/tag/deltagusers", r#"{"tagid":3,"userlist":["new"]}"#, 0),
        ("GET /cgi-bin/tag/delete?tagid=3", "", 0),
        ("GET /cgi-bin/tag/delete?tagid=3", "", 40068),
        ("GET /cgi-bin/department/delete?id=5", "", 60005),
        ("GET /cgi-bin/department/delete?id=99", "", 60123),
        ("GET /cgi-bin/user/delete?userid=new", "", 0),
        ("GET /cgi-bin/user/delete?userid=new", "", 60111),
        ("GET /cgi-bin/department/delete?id=5", "", 0),
    ] {
        assert_eq!(send_authorized(&wecom, line, body).await.errcode(), errcode, "{line} {body}");
    }
}

#[tokio::test]
async fn messages_are_validated_and_stored() {
    let wecom = start_simulator().await;
    let valid = r#"{"touser":"lisi|unknown","msgtype":"text","agentid":1000002,"text":{"content":"你好"}}"#;
    let response = send_authorized(&wecom, "POST /cgi-bin/message/send", valid).await;
    assert_eq!((response.errcode(), response.json()["invaliduser"].as_str()), (0, Some("unknown")));
    assert!(response.json()["msgid"].is_string());
    for (body, errcode) in [
        ("", 40035),
        ("{", 40035),
        (r#"{"touser":"lisi","agentid":1}"#, 40008),
        (r#"{"touser":"lisi","agentid":1,"msgtype":"poem","poem":{}}"#, 40008),
        (r#"{"touser":"lisi","agentid":1,"msgtype":"text"}"#, 40035),
        (r#"{"touser":"lisi","agentid":1,"msgtype":"text","text":{"content":""}}"#, 44004),
        (r#"{"touser":"","agentid":1,"msgtype":"text","text":{"content":"x"}}"#, 81013),
        (r#"{"touser":"lisi","msgtype":"text","text":{"content":"x"}}"#, 41011),
    ] {
        assert_eq!(
            send_authorized(&wecom, "POST /cgi-bin/message/send", body).await.errcode(),
            errcode,
            "{body}"
        );
    }
    let long = vec![b' '; (2 << 20) + 1];
    assert_eq!(send_authorized(&wecom, "POST /cgi-bin/message/send", long).await.errcode(), 45001);
    let webhook_line = "POST /cgi-bin/webhook/send?key=";
    let key = "00000000-1111-2222-3333-444444444444";
    let message = r#"{"msgtype":"markdown","markdown":{"content":"**up**"}}"#;
    assert_eq!(send(&wecom, request(&format!("{webhook_line}{key}"), message)).await.unwrap().errcode(), 0);
    assert_eq!(send(&wecom, request(&format!("{webhook_line}x"), message)).await.unwrap().errcode(), 93000);
    let messages = wecom.messages();
    assert_eq!(messages.len(), 2);
    assert_eq!(
        (messages[0].agent.as_deref(), &messages[0].body["text"]["content"]),
        (Some("hr"), &"你好".into())
    );
    assert_eq!((messages[1].agent.as_deref(), &messages[1].body["msgtype"]), (None, &"markdown".into()));
    assert_eq!(wecom.executed_count("/cgi-bin/message/send"), 1);
}

#[tokio::test]
async fn uploaded_file_downloads_complete_and_by_range() {
    let wecom = start_simulator().await;
    let token = fetch_token(&wecom).await;
    let file = generated_bytes(7, 5000);
    let mut body = b"--xx\r\nContent-Disposition: form-data; name=\"media\"; filename=\"\xe8\xae\xb0.pdf\"; filelength=5000\r\n\
        Content-Type: application/pdf\r\n\r\n".to_vec();
    body.extend_from_slice(&file);
    body.extend_from_slice(b"\r\n--xx--\r\n");
    let upload = |kind: &str| {
        let mut upload =
            request(&format!("POST /cgi-bin/media/upload?access_token={token}&type={kind}"), body.clone());
        upload.headers_mut().insert("content-type", "multipart/form-data; boundary=xx".parse().unwrap());
        upload
    };
    assert_eq!(send(&wecom, upload("poem")).await.unwrap().errcode(), 40004);
    let upload = send(&wecom, upload("file")).await.unwrap().json();
    assert_eq!((&upload["errcode"], &upload["type"]), (&0.into(), &"file".into()));
    assert!(upload["created_at"].as_str().unwrap().parse::<u64>().is_ok());
    let line = format!(
        "GET /cgi-bin/media/get?media_id={}&access_token={token}",
        upload["media_id"].as_str().unwrap()
    );
    let download = call(&wecom, &line).await;
    assert_eq!((download.status, &download.body), (StatusCode::OK, &file));
    assert_eq!((download.header("content-type"), download.header("error-code")), ("application/pdf", "0"));
    assert_eq!(
        download.headers["content-disposition"].as_bytes(),
        "attachment; filename=\"记.pdf\"".as_bytes()
    );
    let ranged = |range: &str| {
        let mut download = request(&line, "");
        download.headers_mut().insert("range", range.parse().unwrap());
        download
    };
    let part = send(&wecom, ranged("bytes=1000-1999")).await.unwrap();
    assert_eq!((part.status, &part.body[..]), (StatusCode::PARTIAL_CONTENT, &file[1000..2000]));
    assert_eq!(part.header("content-range"), "bytes 1000-1999/5000");
    let beyond = send(&wecom, ranged("bytes=5000-")).await.unwrap();
    assert_eq!(
        (beyond.status, beyond.header("content-range")),
        (StatusCode::RANGE_NOT_SATISFIABLE, "bytes */5000")
    );
    let unknown = call(&wecom, &format!("GET /cgi-bin/media/get?media_id=x&access_token={token}")).await;
    assert_eq!((unknown.status, unknown.errcode()), (StatusCode::OK, 40007));
    assert_eq!(send_authorized(&wecom, "POST /cgi-bin/media/upload?type=file", "{}").await.errcode(), 41005);
}

#[tokio::test]
async fn generated_file_matches_its_pattern_at_every_offset() {
    let wecom = start_simulator().await;
    let line = format!(
        "GET /cgi-bin/media/get?media_id=generated-1000000&access_token={}",
        fetch_token(&wecom).await
    );
    let complete = call(&wecom, &line).await;
    assert_eq!((complete.header("content-length"), complete.body.len()), ("1000000", 1_000_000));
    let mut offset = 0;
    while offset < complete.body.len() {
        let expected = generated_bytes(offset as u64, complete.body.len() - offset);
        assert_eq!(complete.body[offset..offset + expected.len()], expected);
        offset += expected.len();
    }
    let mut ranged = request(&line, "");
    ranged.headers_mut().insert("range", "bytes=999990-".parse().unwrap());
    assert_eq!(send(&wecom, ranged).await.unwrap().body, generated_bytes(999_990, 10));
    let head = call(&wecom, &line.replace("GET", "HEAD")).await;
    assert_eq!((head.header("content-length"), head.body.len()), ("1000000", 0));
}

#[tokio::test]
async fn tickets_are_reused_and_ip_list_leads_errcode() {
    let wecom = start_simulator().await;
    let first = send_authorized(&wecom, "GET /cgi-bin/get_jsapi_ticket", "").await;
    let ticket = first.json()["ticket"].as_str().unwrap().to_owned();
    assert_eq!(first.body, format!(r#"{{"errcode":0,"errmsg":"ok","ticket":"{ticket}","expires_in":7200}}"#));
    assert_eq!(send_authorized(&wecom, "GET /cgi-bin/get_jsapi_ticket", "").await.json()["ticket"], *ticket);
    let agents = send_authorized(&wecom, "GET /cgi-bin/ticket/get?type=agent_config", "").await;
    assert_ne!(agents.json()["ticket"], *ticket);
    assert_eq!(send_authorized(&wecom, "GET /cgi-bin/ticket/get", "").await.errcode(), 40035);
    let listed = send_authorized(&wecom, "GET /cgi-bin/getcallbackip", "").await;
    assert!(
        listed.body.starts_with(br#"{"ip_list":["#)
            && listed.body.ends_with(br#"],"errcode":0,"errmsg":"ok"}"#)
    );
    let refused = call(&wecom, "GET /cgi-bin/get_api_domain_ip").await;
    assert!(
        refused.body.starts_with(br#"{"ip_list":[],"errcode":41001,"errmsg":"access_token missing, hint: ["#)
    );
    assert!(refused.json()["errmsg"].as_str().unwrap().contains("from ip: 127.0.0.1, more info at https://"));
}

#[tokio::test]
async fn echo_omits_the_token() {
    let wecom = start_simulator().await;
    let token = fetch_token(&wecom).await;
    let line = format!("PATCH /cgi-bin/simulator/echo?&a=%20b+c&access_token={token}&z");
    let response = send(&wecom, request(&line, "abc")).await.unwrap();
    let json = response.json();
    assert_eq!((&json["method"], &json["query"]), (&"PATCH".into(), &"&a=%20b+c&access_token=&z".into()));
    assert_eq!(json["body_sha256"], "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_eq!((&json["body_bytes"], &json["headers"][0][1]), (&3.into(), &"qyapi.weixin.qq.com".into()));
    assert!(!String::from_utf8_lossy(&response.body).contains(&token));
    let records = wecom.requests();
    assert_eq!(records[0].query, "corpid=ww1234567890abcdef&corpsecret=***");
    let record = &records[1];
    assert_eq!(record.query, "&a=%20b+c&access_token=token#1&z");
    assert_eq!((record.agent.as_deref(), record.token, record.errcode), (Some("hr"), Some(1), Some(0)));
    assert_eq!((record.body_bytes, record.header_values("host")), (3, vec!["qyapi.weixin.qq.com"]));
    assert_eq!(record.body_sha256.as_deref(), json["body_sha256"].as_str());
    let without_token =
        call(&wecom, "GET /cgi-bin/service/echo?suite_access_token=s&access_token=other").await;
    assert_eq!(without_token.json()["query"], "suite_access_token=s&access_token=");
    let unknown = call(&wecom, "GET /cgi-bin/no/such/call").await;
    assert_eq!((unknown.status, unknown.body.len()), (StatusCode::NOT_FOUND, 0));
}
