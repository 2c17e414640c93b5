//! Errcodes with WeCom's error texts.

use std::net::IpAddr;

use super::callbacks::unix_now;
use super::random;
use super::response::ErrcodeJson;

/// The error response for an errcode. As at WeCom, errmsg contains a hint that differs per response and the peer's
/// address.
pub(super) fn error_json(errcode: i64, peer: IpAddr) -> ErrcodeJson {
    let hint = format!("{}{:014}", unix_now(), random::number() % 100_000_000_000_000);
    let more = format!("https://open.work.weixin.qq.com/devtool/query?e={errcode}");
    let text = errmsg(errcode);
    ErrcodeJson::new(errcode, format!("{text}, hint: [{hint}], from ip: {peer}, more info at {more}"))
}

fn errmsg(errcode: i64) -> &'static str {
    match errcode {
        -1 => "system busy",
        40001 => "invalid credential",
        40004 => "invalid media type",
        40006 => "invalid media size",
        40007 => "invalid media_id",
        40008 => "invalid message type",
        40013 => "invalid corpid",
        40014 => "invalid access_token",
        40035 => "invalid parameter",
        40056 => "invalid agentid",
        40068 => "invalid tagid",
        40070 => "all list invalid",
        40071 => "tag already existed",
        40078 => "invalid auth_code",
        40080 => "invalid suite_secret",
        40082 => "invalid suite_acccess_token or provider_access_token",
        40083 => "invalid suite_id",
        40084 => "invalid permanent_code",
        40085 => "invalid suite_ticket",
        41001 => "access_token missing",
        41002 => "corpid missing",
        41004 => "corpsecret missing",
        41005 => "media data missing",
        41006 => "media_id missing",
        41009 => "userid missing",
        41011 => "agentid missing",
        41021 => "suite_id missing",
        41022 => "suite_access_token missing",
        41023 => "suite_ticket missing",
        41024 => "suite_secret missing",
        41025 => "permanent_code missing",
        42001 => "access_token expired",
        42009 => "suite_access_token expired",
        44001 => "empty media data",
        44004 => "text content is empty",
        45001 => "media size out of limit",
        45009 => "api freq out of limit",
        45033 => "api concurrent out of limit",
        48002 => "API forbidden for this app",
        48004 => "unauthorized app",
        60004 => "parent department not found",
        60005 => "department contains user",
        60006 => "department contains sub-department",
        60008 => "department existed",
        60011 => "no privilege to access/modify contact/party/agent",
        60020 => "not allow to access from your ip",
        60102 => "userid existed",
        60111 => "userid not found",
        60123 => "invalid party id",
        81013 => "user & party & tag all invalid",
        93000 => "invalid webhook url",
        301_002 => "not allow operate another agent with this accesstoken",
        _ => "injected failure",
    }
}
