use proptest::prelude::*;

use super::{ProviderToken::*, WantedToken::*, *};

/// The rows of WeCom's documents, written again: a slip in the table is found here.
const ROWS: &[(&str, WantedToken, &str)] = &[
    (
        "service/",
        Of(Provider),
        "get_login_info get_register_code get_register_info get_customized_auth_url corpid_to_opencorpid \
         get_account_balance finish_openid_migration media/upload batch/getresult contact/search \
         contact/batchsearch contact/sort contact/id_translate externalcontact/finish_external_userid_migration \
         add_device del_device list_device fetch_device_log get_device_auth_info reset_secret_no \
         set_printer_support_state",
    ),
    ("", Of(Provider), "hardware/get_device_feature license/create_new_order license/a/b advanced_api/get_x"),
    ("", Of(Provider), "paytool/open_order paytool/get_order_list"),
    (
        "service/",
        Of(Suite),
        "get_pre_auth_code set_session_info get_permanent_code v2/get_permanent_code get_auth_info \
         v2/get_auth_info get_corp_token get_app_qrcode get_order get_order_list prolong_try get_admin_list \
         getuserinfo3rd getuserdetail3rd auth/getuserinfo3rd auth/getuserdetail3rd school/getuserinfo3rd \
         miniprogram/jscode2session externalcontact/unionid_to_external_userid_3rd \
         customer_acquisition/get_bill_list",
    ),
    ("", Of(Suite), "idconvert/upgrade_chatid_for_new_corp"),
    ("", Own, "service/get_provider_token service/get_suite_token openhw/get_model_token openhw/x"),
    ("", Own, "webhook/send webhook/upload_media aibot/response"),
    ("", Unlisted, "service/something_new service/v3/get_permanent_code"),
    ("", Access, "user/get message/send hardware/other idconvert/other aibot/other corpgroup/corp/gettoken"),
    ("", Access, "gettoken service services/x licenses/x"),
];

#[test]
fn each_documented_path_wants_its_token() {
    for (root, wanted, paths) in ROWS {
        for path in paths.split_whitespace() {
            let path = format!("{root}{path}");
            for spelled in [path.clone(), path.to_ascii_uppercase(), format!("{path}/")] {
                assert_eq!(wanted_token(&spelled), *wanted, "{spelled}");
            }
        }
    }
}

#[test]
fn parameters_are_those_of_the_documents() {
    assert_eq!(Provider.param_on("service/get_login_info"), "access_token");
    assert_eq!(Provider.param_on("license/create_new_order"), "provider_access_token");
    assert_eq!(Suite.param_on("service/get_pre_auth_code"), "suite_access_token");
}

#[test]
fn exchanges_are_exactly_the_calls_with_secrets() {
    assert_eq!(exchange_call("service/get_suite_token"), Some(ExchangeCall::SuiteToken));
    assert_eq!(exchange_call("service/get_provider_token/"), Some(ExchangeCall::ProviderToken));
    assert_eq!(exchange_call("service/get_corp_token"), Some(ExchangeCall::CorpToken));
    let permanent_code = |is_v2| Some(ExchangeCall::PermanentCode { is_v2 });
    assert_eq!(exchange_call("service/get_permanent_code"), permanent_code(false));
    assert_eq!(exchange_call("service/v2/GET_permanent_code"), permanent_code(true));
    assert_eq!(exchange_call("service/v2/get_auth_info"), Some(ExchangeCall::AuthInfo));
    for other in ["service/get_pre_auth_code", "gettoken", "get_suite_token", "service/get_suite_tokens"] {
        assert_eq!(exchange_call(other), None, "{other}");
    }
}

#[test]
fn errcodes_say_what_the_documents_say() {
    for errcode in -1..100_000 {
        assert_eq!(
            voids_provider_token(errcode),
            [40014, 42001, 42009, 40082].contains(&errcode),
            "{errcode}"
        );
        assert_eq!(is_ticket_error(errcode), [40085, 41023].contains(&errcode), "{errcode}");
        assert_eq!(is_authorization_gone(errcode), [40084, 48004].contains(&errcode), "{errcode}");
        assert_eq!(is_suite_credential_error(errcode), [40080, 40083, 48003].contains(&errcode), "{errcode}");
    }
    assert!(is_customized_template("dk1234") && !is_customized_template("ww1234"));
}

proptest! {
    #[test]
    fn any_path_is_classified_without_panic(path in "(service|license|openhw)?/?\\PC{0,40}") {
        let is_service = path.to_ascii_lowercase().starts_with("service/");
        prop_assert!(is_service || !matches!(wanted_token(&path), Unlisted));
        prop_assert!(exchange_call(&path).is_none() || is_service);
    }
}
