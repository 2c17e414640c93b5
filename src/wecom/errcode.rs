//! The errcodes that operators meet most, with meaning and action. One table, sorted by errcode.
//!
//! Source: WeCom's global error code list (企业微信开发者中心, 全局错误码), and for the actions, the pages of the calls.

use std::net::IpAddr;

/// The call succeeded.
pub const OK: i64 = 0;
/// WeCom is busy; the call may or may not have been carried out.
pub const BUSY: i64 = -1;
/// The secret is wrong, was reset, or the app is disabled.
pub const INVALID_SECRET: i64 = 40001;
/// There is no such corpid.
pub const INVALID_CORPID: i64 = 40013;
/// The access_token is not valid, or this kind of app may not call this API at all.
pub const INVALID_TOKEN: i64 = 40014;
/// The auth_code is not valid, or was used before.
pub const INVALID_AUTH_CODE: i64 = 40078;
/// The suite_secret is not valid.
pub const INVALID_SUITE_SECRET: i64 = 40080;
/// There is no such suite_id.
pub const INVALID_SUITE_ID: i64 = 40083;
/// The permanent_code is not valid, or the corp withdrew its authorisation.
pub const INVALID_PERMANENT_CODE: i64 = 40084;
/// The corp withdrew its authorisation.
pub const AUTHORIZATION_WITHDRAWN: i64 = 48004;
/// The body has no suite_id.
pub const MISSING_SUITE_ID: i64 = 41021;
/// The body has no suite_secret.
pub const MISSING_SUITE_SECRET: i64 = 41024;
/// The body has no permanent_code.
pub const MISSING_PERMANENT_CODE: i64 = 41025;
/// A parameter is not valid.
pub const INVALID_PARAMETER: i64 = 40035;
/// The secret is not valid.
pub const ILLEGAL_SECRET: i64 = 40091;
/// The query has no access_token.
pub const MISSING_TOKEN: i64 = 41001;
/// The query has no corpid.
pub const MISSING_CORPID: i64 = 41002;
/// The query has no secret.
pub const MISSING_SECRET: i64 = 41004;
/// The access_token has expired, or was voided early.
pub const TOKEN_EXPIRED: i64 = 42001;
/// The body is too large.
pub const FILE_TOO_LARGE: i64 = 45001;
/// Called too often.
pub const RATE_LIMITED: i64 = 45009;
/// gettoken refuses this app's credential.
pub const CREDENTIAL_REFUSED: i64 = 45031;
/// Too many calls at a time.
pub const CONCURRENCY_LIMITED: i64 = 45033;
/// This app may not call this API.
pub const API_FORBIDDEN: i64 = 48002;
/// The app is disabled.
pub const APP_DISABLED: i64 = 50003;
/// The agentid is not the one of the token's app.
pub const AGENT_MISMATCH: i64 = 301002;
/// The caller's address is not among the app's trusted ones.
pub const UNTRUSTED_IP: i64 = 60020;

/// An errcode's meaning and what to do about it, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The code.
    pub errcode: i64,
    /// What it means, in plain ASCII.
    pub meaning_en: &'static str,
    /// 含义。
    pub meaning_zh: &'static str,
    /// What to do, in plain ASCII.
    pub action_en: &'static str,
    /// 处理办法。
    pub action_zh: &'static str,
    /// Where in WeCom's admin console to do it, menu by menu, in plain ASCII; `None` if it is not done there.
    pub console_path_en: Option<&'static str>,
    /// 在管理后台的哪里处理。
    pub console_path_zh: Option<&'static str>,
    hint: &'static str,
}

/// For trouble without an errcode: WeCom does not respond.
pub static UPSTREAM_TIMEOUT: Explanation = Explanation::without_errcode(
    ["WeCom did not respond in time", "check the network to WeCom and upstream.response_timeout"],
    ["企业微信没有及时响应", "检查到企业微信的网络，以及upstream.response_timeout"],
);
/// For trouble that is in the requests themselves.
pub static HALF_FAILED: Explanation = Explanation::without_errcode(
    ["at least half of the requests fail", "open one of the failed requests: it says why"],
    ["一半以上的请求失败", "打开一个失败的请求查看原因"],
);

impl Explanation {
    const fn without_errcode(
        [meaning_en, action_en]: [&'static str; 2],
        [meaning_zh, action_zh]: [&'static str; 2],
    ) -> Self {
        let (console_path_en, console_path_zh, hint) = (None, None, meaning_en);
        Self {
            errcode: 0,
            meaning_en,
            meaning_zh,
            action_en,
            action_zh,
            console_path_en,
            console_path_zh,
            hint,
        }
    }
}

/// The explanation of `errcode`, if it is a common one.
pub fn explain(errcode: i64) -> Option<&'static Explanation> {
    EXPLANATIONS
        .binary_search_by_key(&errcode, |explanation| explanation.errcode)
        .ok()
        .map(|index| &EXPLANATIONS[index])
}

/// All explanations, sorted by errcode.
pub fn explanations() -> &'static [Explanation] {
    EXPLANATIONS
}

/// The English explanation as one line of visible ASCII, valid as a header value.
pub fn hint(errcode: i64) -> Option<&'static str> {
    explain(errcode).map(|explanation| explanation.hint)
}

/// Whether gettoken must not be retried soon after this errcode: the credential is refused, or the rate limit is
/// exceeded.
///
/// WeCom bans an *address* that repeats a wrong secret, and with it every agent behind that address.
pub const fn is_credential_or_rate_limit(errcode: i64) -> bool {
    matches!(
        errcode,
        INVALID_SECRET
            | INVALID_CORPID
            | ILLEGAL_SECRET
            | MISSING_CORPID
            | MISSING_SECRET
            | RATE_LIMITED
            | CREDENTIAL_REFUSED
            | CONCURRENCY_LIMITED
            | APP_DISABLED
    )
}

/// Whether an agent with one such response needs its operator at once.
pub const fn is_trouble(errcode: i64) -> bool {
    matches!(
        errcode,
        UNTRUSTED_IP
            | API_FORBIDDEN
            | APP_DISABLED
            | RATE_LIMITED
            | AGENT_MISMATCH
            | INVALID_SECRET
            | INVALID_PERMANENT_CODE
            | AUTHORIZATION_WITHDRAWN
    )
}

/// Whether requests fail with it whatever their parameters are.
pub const fn is_outage(errcode: i64) -> bool {
    matches!(errcode, UNTRUSTED_IP | RATE_LIMITED | BUSY | INVALID_SECRET)
}

/// Whether it reports wrong parameters of the caller: ids that are not there, missing or malformed fields, texts and
/// files that are too long.
pub const fn is_caller_mistake(errcode: i64) -> bool {
    matches!(
        errcode,
        40003..=40012
            | 40015..=40040
            | 40050..=40077
            | 40094..=40129
            | 41003
            | 41005..=41020
            | 41027..=41999
            | 43001..=44999
            | 45001..=45008
            | 45015..=45030
            | 46000..=47999
            | 60001..=60010
            | 60012..=60019
            | 60102..=60140
            | 81001..=81014
            | 82001..=82003
            | 84061
            | 86001..=86224
            | 90001..=92999
    )
}

/// The address in WeCom's text for [`UNTRUSTED_IP`]: the one to add to the app's trusted ones.
pub fn untrusted_address(body: &[u8]) -> Option<IpAddr> {
    const MARKER: &[u8] = b"from ip:";
    let after = memchr::memmem::find(body, MARKER)? + MARKER.len();
    let text = body[after..].trim_ascii_start();
    let end = text.iter().position(|byte| !byte.is_ascii_hexdigit() && !matches!(byte, b'.' | b':'));
    std::str::from_utf8(&text[..end.unwrap_or(text.len())]).ok()?.parse().ok()
}

/// Whether it reports too many calls, so that a further call makes it worse.
pub const fn is_rate_limit(errcode: i64) -> bool {
    matches!(errcode, RATE_LIMITED | CONCURRENCY_LIMITED)
}

macro_rules! table {
    ($($errcode:expr => $meaning_en:literal, $meaning_zh:literal; $action_en:literal, $action_zh:literal
        $(; in $place_en:literal, $place_zh:literal)?.)*) => {
        &[$(Explanation {
            errcode: $errcode,
            meaning_en: $meaning_en,
            meaning_zh: $meaning_zh,
            action_en: $action_en,
            action_zh: $action_zh,
            console_path_en: first_or_none(&[$($place_en)?]),
            console_path_zh: first_or_none(&[$($place_zh)?]),
            hint: concat!($meaning_en, ": ", $action_en $(, " (admin console: ", $place_en, ")")?),
        }),*]
    };
}

const fn first_or_none(values: &[&'static str]) -> Option<&'static str> {
    match values {
        [] => None,
        [first, ..] => Some(*first),
    }
}

static EXPLANATIONS: &[Explanation] = table! {
    BUSY => "WeCom is busy", "系统繁忙";
        "try again a little later, three times at most", "稍后重试，最多三次".
    INVALID_SECRET => "the secret is wrong, was reset, or the app is disabled",
        "不合法的secret参数：secret有误、已重置，或应用已停用";
        "compare the agent's secret with the one in the admin console; do not keep trying",
        "在管理后台核对secret；不要反复重试";
        in "App Management > Apps > the app > Secret", "应用管理 → 应用 → 选择应用 → Secret".
    40003 => "no such userid", "无效的UserID";
        "check the userid; it is the account in the contacts, not the member's name",
        "检查userid，它是通讯录中的帐号，不是成员姓名".
    40004 => "this kind of media file is not allowed", "不合法的媒体文件类型";
        "check the file's format against the upload limits", "对照上传限制检查文件格式".
    40007 => "the media_id is not valid", "不合法的media_id参数";
        "upload the file again; temporary media last three days, and belong to the corp that uploaded them",
        "重新上传文件；临时素材三天内有效，且只属于上传的企业".
    40008 => "the msgtype is not valid", "不合法的msgtype参数";
        "use one of the documented message types", "使用文档列出的消息类型".
    INVALID_CORPID => "no such corpid", "不合法的CorpID";
        "copy the corpid from the admin console", "在管理后台复制企业ID";
        in "My Company > Company Information > Company ID", "我的企业 → 企业信息 → 企业ID".
    INVALID_TOKEN => "the access_token is not valid, or this kind of app may not call this API",
        "不合法的access_token，或这类应用不能调用该接口";
        "the proxy renews the token by itself; if it stays, use an app that is allowed to call this API",
        "代理会自动换取新token；若仍出现，请改用有权调用该接口的应用".
    40029 => "the OAuth code is not valid", "不合法的oauth_code";
        "a code serves once and for five minutes, and only for the app it was issued for",
        "code只能用一次，五分钟内有效，且只用于签发它的应用".
    INVALID_PARAMETER => "a parameter is not valid", "不合法的参数";
        "compare the request with the API's page; errmsg may name the parameter",
        "对照接口文档检查参数，errmsg可能指出是哪一个".
    40056 => "the agentid is not valid", "不合法的agentid";
        "use the AgentId of an app that is there, as a number",
        "使用现有应用的AgentId，数字类型";
        in "App Management > Apps > the app > AgentId", "应用管理 → 应用 → 选择应用 → AgentId".
    40058 => "a parameter is not valid", "不合法的参数";
        "errmsg names the parameter", "errmsg会指出具体参数".
    40078 => "the auth_code is wrong, was used, or is older than ten minutes", "auth_code无效、已使用或已超过十分钟";
        "let the corp's administrator authorise the app again", "请企业管理员重新授权".
    INVALID_SUITE_SECRET => "the suite_secret is wrong", "不合法的suite_secret";
        "compare the suite's secret with the one in the provider's console; do not keep trying",
        "在服务商管理后台核对suite_secret；不要反复重试".
    40082 => "the token of the suite or of the provider is not valid", "不合法的suite_access_token或provider_access_token";
        "the proxy renews the token by itself", "代理会自动换取新token".
    INVALID_SUITE_ID => "there is no suite with this suite_id", "不合法的suite_id";
        "copy the suite_id from the provider's console", "在服务商管理后台复制suite_id".
    INVALID_PERMANENT_CODE => "the permanent code is wrong, or the corp withdrew its authorisation",
        "永久授权码有误，或企业已取消授权";
        "if the corp still uses the app, let its administrator authorise it again", "若企业仍在使用，请其管理员重新授权".
    40085 => "the suite_ticket is wrong or has expired", "不合法或已过期的suite_ticket";
        "see that WeCom's pushes reach the suite's command URL, or push a ticket by hand in the provider's console; asking again is useless",
        "确认指令回调URL能收到推送，或在服务商管理后台手动推送ticket；重试无效".
    ILLEGAL_SECRET => "the secret is not valid, perhaps another company's", "secret不合法，可能用了别的企业的secret";
        "compare the agent's corpid and secret with those in the admin console; do not keep trying",
        "在管理后台核对corpid和secret；不要反复重试";
        in "App Management > Apps > the app > Secret", "应用管理 → 应用 → 选择应用 → Secret".
    MISSING_TOKEN => "the request had no access_token", "缺少access_token参数";
        "if the call went through the proxy, report it: the proxy should have added the token",
        "若请求经由代理，请反馈：token本应由代理加上".
    MISSING_CORPID => "the request had no corpid", "缺少corpid参数";
        "add corpid to the query", "在查询参数中加上corpid".
    MISSING_SECRET => "the request had no secret", "缺少secret参数";
        "add corpsecret to the query", "在查询参数中加上corpsecret".
    41011 => "the request had no agentid", "缺少agentid参数";
        "add the app's agentid to the body", "在请求体中加上应用的agentid";
        in "App Management > Apps > the app > AgentId", "应用管理 → 应用 → 选择应用 → AgentId".
    TOKEN_EXPIRED => "the access_token has expired", "access_token已过期";
        "the proxy renews the token by itself; a client that holds a pass fetches a new one by gettoken",
        "代理会自动换取新token；持有通行证的客户端请重新调用gettoken".
    42009 => "the suite_access_token has expired", "suite_access_token已过期";
        "the proxy renews the token by itself", "代理会自动换取新token".
    44004 => "the text of the message is empty", "文本消息content参数为空";
        "send some text in content", "在content中填写内容".
    FILE_TOO_LARGE => "the file is too large", "多媒体文件大小超过限制";
        "send a smaller one: images and videos 10 MB, voice 2 MB, files 20 MB",
        "减小文件：图片、视频10MB，语音2MB，普通文件20MB".
    45002 => "the message is too long", "消息内容大小超过限制";
        "shorten it, or split it", "缩短或拆分消息".
    RATE_LIMITED => "called too often", "接口调用超过限制";
        "slow down and wait: the block lasts a minute, an hour or the day, by the limit that was hit",
        "降低频率并等待：按触发的限制，封禁一分钟、一小时或当天".
    CONCURRENCY_LIMITED => "too many calls at the same time", "接口并发调用超过限制";
        "send fewer at a time", "减少同时进行的调用".
    API_FORBIDDEN => "this app may not call this API", "API接口无权限调用";
        "contacts are changed with the secret of contacts sync, customers are reached with that of an app on the list of apps that may call; use that secret, or put the app on the list",
        "修改通讯录须用“通讯录同步”的secret，客户联系接口须用“可调用接口的应用”中的应用；改用相应的secret，或把应用加入其中";
        in "Management Tools > Contacts Sync, or Customer Contact > API", "管理工具 → 通讯录同步，或 客户联系 → API → 可调用接口的应用".
    AUTHORIZATION_WITHDRAWN => "the corp withdrew its authorisation", "企业已取消授权";
        "if the corp still uses the app, let its administrator authorise it again", "若企业仍在使用，请其管理员重新授权".
    48006 => "the permission for this API was withdrawn", "接口权限被收回";
        "the app was long unused; an administrator has to enable it again",
        "企业长时间未使用应用，须由企业管理员重新启用";
        in "App Management > Apps > the app", "应用管理 → 应用 → 选择应用".
    50001 => "the redirect_url's host is not a trusted domain", "redirect_url未登记可信域名";
        "add the domain, with its port, to the app's trusted domains", "在应用的可信域名中登记该域名，端口也须一致";
        in "App Management > Apps > the app > Web Authorization and JS-SDK", "应用管理 → 应用 → 选择应用 → 网页授权及JS-SDK".
    50002 => "the member is outside of what the app may see", "成员不在权限范围";
        "add the member to the app's visible range", "把成员加入应用的可见范围";
        in "App Management > Apps > the app > Allowed users", "应用管理 → 应用 → 选择应用 → 可见范围".
    APP_DISABLED => "the app is disabled", "应用已禁用";
        "enable it again", "重新启用该应用";
        in "App Management > Apps > the app", "应用管理 → 应用 → 选择应用".
    60003 => "no such department", "部门ID不存在";
        "check the department's id", "检查部门ID".
    60011 => "no permission for this member, department or tag", "指定的成员/部门/标签参数无权限";
        "widen the app's visible range; to change contacts, use the secret of contacts sync",
        "扩大应用的可见范围；修改通讯录须用“通讯录同步”的secret";
        in "App Management > Apps > the app > Allowed users", "应用管理 → 应用 → 选择应用 → 可见范围".
    UNTRUSTED_IP => "the address this call came from is not among the app's trusted IPs", "访问ip不在白名单之中";
        "add the address that errmsg gives after 'from ip:' to the app's trusted IPs; it takes about a minute, and first wants a trusted domain or a URL for receiving messages",
        "把errmsg中“from ip:”后的地址加入应用的企业可信IP，约一分钟生效；配置前须先设置可信域名或接收消息服务器URL";
        in "App Management > Apps > the app > Company's Trusted IP", "应用管理 → 应用 → 选择应用 → 企业可信IP".
    60104 => "the mobile number is taken", "手机号码已存在";
        "find the member who has it", "查找已使用该号码的成员".
    60111 => "no such userid", "UserID不存在";
        "check the userid; the member may have left", "检查userid，成员可能已离职".
    81013 => "none of the members, departments and tags is valid and allowed",
        "UserID、部门ID、标签ID全部非法或无权限";
        "check touser, toparty and totag, and the app's visible range",
        "检查touser、toparty、totag以及应用的可见范围";
        in "App Management > Apps > the app > Allowed users", "应用管理 → 应用 → 选择应用 → 可见范围".
    82001 => "no member, department or tag was given", "指定的成员/部门/标签全部为空";
        "fill in at least one of touser, toparty and totag", "touser、toparty、totag至少填一个".
    84061 => "not an external contact of this member", "不存在外部联系人的关系";
        "check the userid and the external_userid", "检查userid与external_userid".
    84074 => "no permission for external contacts", "没有外部联系人权限";
        "let the app call customer contact APIs, and the member use customer contact",
        "把应用设为可调用客户联系接口，并为成员开启客户联系";
        in "Customer Contact > API, and > Permissions", "客户联系 → API → 可调用接口的应用，及 权限配置".
    93000 => "the webhook's URL is not valid, or its bot was removed from the group",
        "机器人webhookurl不合法或者机器人已经被移除出群";
        "compare the key with the bot's page in the group", "在群里的机器人详情页核对key".
    301002 => "this token may not operate that app", "无权限操作指定的应用";
        "the agentid must be that of the app whose secret is used: compare the agentid in the request and in proxy.toml",
        "agentid须与所用secret属于同一应用：核对请求和proxy.toml中的agentid";
        in "App Management > Apps > the app > AgentId", "应用管理 → 应用 → 选择应用 → AgentId".
    701_008 => "the member has no paid interface licence", "成员未激活付费接口许可";
        "buy a licence for the member and activate it", "为该成员购买并激活接口许可帐号".
    842_002 => "the template of the customized app is not online", "代开发应用模板未上线";
        "put the template online in the provider's console", "在服务商管理后台上线该模板".
};

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn explanations_are_sorted_and_complete() {
        assert!(EXPLANATIONS.is_sorted_by(|a, b| a.errcode < b.errcode));
        for explanation in EXPLANATIONS {
            assert_eq!(explain(explanation.errcode), Some(explanation));
            let paths = explanation.console_path_en.into_iter().chain(explanation.console_path_zh);
            for text in
                [explanation.meaning_en, explanation.meaning_zh, explanation.action_en, explanation.action_zh]
                    .into_iter()
                    .chain(paths)
            {
                assert!(!text.is_empty() && !text.contains(['\n', '\r']), "{}", explanation.errcode);
            }
            assert!(!explanation.meaning_zh.is_ascii(), "{}", explanation.errcode);
            assert_eq!(
                explanation.console_path_en.is_some(),
                explanation.console_path_zh.is_some(),
                "{}",
                explanation.errcode
            );
        }
        for unknown in [OK, 1, -2, 40002, i64::MIN, i64::MAX] {
            assert_eq!(explain(unknown), None);
        }
    }

    #[test]
    fn hint_is_a_valid_header_value() {
        for explanation in EXPLANATIONS {
            let text = hint(explanation.errcode).unwrap();
            assert!(text.bytes().all(|byte| matches!(byte, b' '..=b'~')) && text.len() <= 320, "{text}");
            assert!(HeaderValue::from_str(text).is_ok());
        }
        let disabled =
            "the app is disabled: enable it again (admin console: App Management > Apps > the app)";
        assert_eq!(hint(50003), Some(disabled));
        assert_eq!(hint(44004), Some("the text of the message is empty: send some text in content"));
        assert_eq!(hint(0), None);
    }

    #[test]
    fn untrusted_address_is_found_in_errmsg() {
        for (body, expected) in [
            (
                r#"{"errcode":60020,"errmsg":"not allow to access from your ip, hint: [1], from ip: 203.0.113.7, more info at https://x"}"#,
                Some("203.0.113.7"),
            ),
            (r#"{"errmsg":"from ip:2001:db8::7 more"}"#, Some("2001:db8::7")),
            (r#"{"errmsg":"from ip: 203.0.113.7"}"#, Some("203.0.113.7")),
            (r#"{"errmsg":"from ip: "}"#, None),
            (r#"{"errmsg":"from ip: 203.0.113"}"#, None),
            (r#"{"errcode":60020}"#, None),
        ] {
            let expected = expected.map(|address| address.parse().expect("an address"));
            assert_eq!(untrusted_address(body.as_bytes()), expected, "{body}");
        }
    }

    #[test]
    fn no_errcode_is_both_an_outage_and_a_callers_mistake() {
        let both =
            |errcode: &i64| is_caller_mistake(*errcode) && (is_outage(*errcode) || is_trouble(*errcode));
        assert_eq!((-1..1_000_000).filter(both).collect::<Vec<_>>(), [0_i64; 0]);
        for errcode in [INVALID_CORPID, INVALID_TOKEN, ILLEGAL_SECRET, TOKEN_EXPIRED, MISSING_TOKEN, OK] {
            assert!(!is_caller_mistake(errcode), "{errcode}");
        }
    }

    #[test]
    fn gettoken_cooldown_errcodes_are_exact() {
        let long: Vec<i64> = (-1..1_000_000).filter(|code| is_credential_or_rate_limit(*code)).collect();
        assert_eq!(long, [40001, 40013, 40091, 41002, 41004, 45009, 45031, 45033, 50003]);
    }
}
