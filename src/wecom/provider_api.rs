//! The calls of service providers (服务商): which token a path wants, under which parameter, and what an errcode says
//! about the token that was sent.
//!
//! Source: the request lines of WeCom's developer documents (third-party and customized apps), and its global error
//! code list. The path decides which token is wanted, not the name of a parameter.

/// A kind of token that a provider's programs send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProviderToken {
    /// The provider's own.
    Provider,
    /// That of a third-party app, or of a template of customized apps.
    Suite,
}

impl ProviderToken {
    /// The query parameter that carries it, except in [`LOGIN_INFO`].
    pub const fn param(self) -> &'static str {
        match self {
            Self::Provider => "provider_access_token",
            Self::Suite => "suite_access_token",
        }
    }

    /// The query parameter that carries it on this path, given below `/cgi-bin/`.
    pub fn param_on(self, path: &str) -> &'static str {
        match self {
            Self::Provider if is_path(path, LOGIN_INFO) => "access_token",
            kind => kind.param(),
        }
    }
}

/// The token that a path wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WantedToken {
    /// The access_token of an application or of an authorised corp.
    Access,
    /// A token of a provider.
    Of(ProviderToken),
    /// A path under `service/` that the table lacks.
    Unlisted,
    /// None: its credential stands in the body, or in a parameter of its own.
    Own,
}

/// The calls that return a token or a permanent code, or that send one, and are not simply forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExchangeCall {
    /// `service/get_provider_token`
    ProviderToken,
    /// `service/get_suite_token`
    SuiteToken,
    /// `service/get_corp_token`
    CorpToken,
    /// `service/get_permanent_code`, and its second version.
    PermanentCode {
        /// Whether it is `service/v2/get_permanent_code`.
        is_v2: bool,
    },
    /// `service/get_auth_info`, and its second version.
    AuthInfo,
}

/// The call with the provider's token in `access_token`.
pub const LOGIN_INFO: &str = "service/get_login_info";

/// Paths below `/cgi-bin/` that take the provider's token, beside those below [`PROVIDER_ROOTS`].
const PROVIDER_PATHS: &[&str] = &[
    LOGIN_INFO,
    "service/get_register_code",
    "service/get_register_info",
    "service/get_customized_auth_url",
    "service/corpid_to_opencorpid",
    "service/get_account_balance",
    "service/finish_openid_migration",
    "service/media/upload",
    "service/batch/getresult",
    "service/contact/search",
    "service/contact/batchsearch",
    "service/contact/sort",
    "service/contact/id_translate",
    "service/externalcontact/finish_external_userid_migration",
    "service/add_device",
    "service/del_device",
    "service/list_device",
    "service/fetch_device_log",
    "service/get_device_auth_info",
    "service/reset_secret_no",
    "service/set_printer_support_state",
    "hardware/get_device_feature",
];

/// Everything below these takes the provider's token.
const PROVIDER_ROOTS: &[&str] = &["license", "advanced_api", "paytool"];

/// Paths below `/cgi-bin/` that take the suite's token.
const SUITE_PATHS: &[&str] = &[
    "service/get_pre_auth_code",
    "service/set_session_info",
    "service/get_permanent_code",
    "service/v2/get_permanent_code",
    "service/get_auth_info",
    "service/v2/get_auth_info",
    "service/get_corp_token",
    "service/get_app_qrcode",
    "service/get_order",
    "service/get_order_list",
    "service/prolong_try",
    "service/get_admin_list",
    "service/getuserinfo3rd",
    "service/getuserdetail3rd",
    "service/auth/getuserinfo3rd",
    "service/auth/getuserdetail3rd",
    "service/school/getuserinfo3rd",
    "service/miniprogram/jscode2session",
    "service/externalcontact/unionid_to_external_userid_3rd",
    "service/customer_acquisition/get_bill_list",
    "idconvert/upgrade_chatid_for_new_corp",
];

/// Paths with a credential in the body.
const TOKENLESS_PATHS: &[&str] = &["service/get_provider_token", "service/get_suite_token", "aibot/response"];

/// Everything below these has a credential of its own in the query: a robot's key, a device's or a model's token.
const OWN_CREDENTIAL_ROOTS: &[&str] = &["webhook", "openhw"];

/// The token that a path wants, given below `/cgi-bin/`. Upper case and a trailing slash make no difference, because
/// servers differ in them.
pub fn wanted_token(path: &str) -> WantedToken {
    let path = path.trim_end_matches('/');
    let is_in = |table: &[&str]| table.iter().any(|known| is_path(path, known));
    let is_below_any = |roots: &[&str]| roots.iter().any(|root| is_below(path, root));
    if is_below_any(PROVIDER_ROOTS) || is_in(PROVIDER_PATHS) {
        WantedToken::Of(ProviderToken::Provider)
    } else if is_in(SUITE_PATHS) {
        WantedToken::Of(ProviderToken::Suite)
    } else if is_in(TOKENLESS_PATHS) || is_below_any(OWN_CREDENTIAL_ROOTS) {
        WantedToken::Own
    } else if is_below(path, "service") {
        WantedToken::Unlisted
    } else {
        WantedToken::Access
    }
}

/// The exchange that a path, given below `/cgi-bin/`, asks for.
pub fn exchange_call(path: &str) -> Option<ExchangeCall> {
    let path = path.trim_end_matches('/');
    let known = [
        ("service/get_provider_token", ExchangeCall::ProviderToken),
        ("service/get_suite_token", ExchangeCall::SuiteToken),
        ("service/get_corp_token", ExchangeCall::CorpToken),
        ("service/get_permanent_code", ExchangeCall::PermanentCode { is_v2: false }),
        ("service/v2/get_permanent_code", ExchangeCall::PermanentCode { is_v2: true }),
        ("service/get_auth_info", ExchangeCall::AuthInfo),
        ("service/v2/get_auth_info", ExchangeCall::AuthInfo),
    ];
    known.into_iter().find(|(known, _)| is_path(path, known)).map(|(_, call)| call)
}

/// Whether an errcode voids the token of a provider or a suite that a call was sent with: 40082 names both kinds in its
/// text, 40014 and 42001 all three. For an access_token, `tokens.refresh_errcodes` says so.
pub const fn voids_provider_token(errcode: i64) -> bool {
    matches!(errcode, 40014 | 42001 | 42009 | 40082)
}

/// Whether an errcode says that a suite_ticket is wrong, expired or missing: only the next push helps.
pub const fn is_ticket_error(errcode: i64) -> bool {
    matches!(errcode, 40085 | 41023)
}

/// Whether an errcode says that the permanent code of a corp serves no longer: the corp withdrew its authorisation, or
/// the code was reset.
pub const fn is_authorization_gone(errcode: i64) -> bool {
    matches!(errcode, 40084 | 48004)
}

/// Whether an errcode says that an auth_code is wrong, too old, or used.
pub const fn is_auth_code_error(errcode: i64) -> bool {
    matches!(errcode, 40077 | 40078 | 42007)
}

/// Whether an errcode says that a suite's id or secret is wrong, which must not be tried again soon.
pub const fn is_suite_credential_error(errcode: i64) -> bool {
    matches!(errcode, 40080 | 40083 | 48003)
}

/// Whether a suite id is that of a template of customized apps (代开发), whose corps use gettoken.
pub fn is_customized_template(suite_id: &str) -> bool {
    suite_id.starts_with("dk")
}

fn is_path(path: &str, known: &str) -> bool {
    path.trim_end_matches('/').eq_ignore_ascii_case(known)
}

/// Whether `path` is below the directory `root`.
fn is_below(path: &str, root: &str) -> bool {
    let start = path.as_bytes().get(..root.len());
    start.is_some_and(|start| start.eq_ignore_ascii_case(root.as_bytes()))
        && path.as_bytes().get(root.len()) == Some(&b'/')
}

#[cfg(test)]
mod tests;
