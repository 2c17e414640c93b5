//! WeCom's quotas. The numbers are those of its documentation as of 2026-02: developer.work.weixin.qq.com/document/path/90312,
//! of tickets 90506, of webhooks 99110, and from `checkin` on the page of each call. WeCom may change them.
//! `[[quotas.limit]]` adds and replaces rows.
//!
//! Left out, because a count of calls does not tell: quotas of errors (`user/getuserid`), of `debug=1`, of concurrency, and
//! those whose numbers are not published (`kf/sync_msg`).

use std::time::Duration;

use crate::config::QuotaScope::{self, Address, Agent, Corp, Credential, Member};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
/// Ends at midnight in Beijing.
pub const DAY: Duration = Duration::from_secs(86_400);
const MONTH: Duration = Duration::from_secs(30 * 86_400);
/// A limit whose number a count of calls cannot tell: only errcode 45009 says that it is spent.
pub const UNKNOWN_LIMIT: u32 = u32::MAX;

/// Calls with the same quota; each call has it for itself.
#[derive(Debug)]
pub struct QuotaRow {
    /// Patterns as in `allow`.
    pub paths: &'static [&'static str],
    /// Paths that `paths` matches and that do not count.
    pub except: &'static [&'static str],
    /// What is counted together.
    pub per: QuotaScope,
    /// How many calls in which time. Beyond it, calls are blocked for that time.
    pub limits: &'static [(u32, Duration)],
}

const fn row(
    paths: &'static [&'static str],
    per: QuotaScope,
    limits: &'static [(u32, Duration)],
) -> QuotaRow {
    QuotaRow { paths, except: &[], per, limits }
}

/// The call that sends a message of an application to its members.
pub const MESSAGE_SEND: &str = "/cgi-bin/message/send";
/// All calls. App messages have quotas of their own, and a code can be exchanged once only.
const EVERY_CALL: &[&str] = &["/cgi-bin/*"];
const OUTSIDE_BASE: &[&str] = &[MESSAGE_SEND, "/cgi-bin/auth/getuserinfo"];

/// The table.
pub const QUOTAS: &[QuotaRow] = &[
    QuotaRow {
        paths: EVERY_CALL,
        except: OUTSIDE_BASE,
        per: Corp,
        limits: &[(10_000, MINUTE), (150_000, HOUR)],
    },
    QuotaRow {
        paths: EVERY_CALL,
        except: OUTSIDE_BASE,
        per: Address,
        limits: &[(20_000, MINUTE), (600_000, HOUR)],
    },
    // An application may reach its accounts times 200 members a day.
    row(&[MESSAGE_SEND], Agent, &[(UNKNOWN_LIMIT, DAY)]),
    // Beyond it, WeCom drops messages without an errcode.
    row(&[MESSAGE_SEND], Member, &[(30, MINUTE), (1_000, HOUR)]),
    row(&["/cgi-bin/appchat/create"], Corp, &[(1_000, DAY)]),
    row(&["/cgi-bin/appchat/update"], Corp, &[(1_000, HOUR)]),
    row(&["/cgi-bin/get_jsapi_ticket", "/cgi-bin/ticket/get"], Corp, &[(400, HOUR)]),
    row(&["/cgi-bin/get_jsapi_ticket", "/cgi-bin/ticket/get"], Agent, &[(100, HOUR)]),
    row(&["/cgi-bin/webhook/send"], Credential, &[(20, MINUTE)]),
    row(
        &[
            "/cgi-bin/checkin/getcheckindata",
            "/cgi-bin/checkin/punch_correction",
            "/cgi-bin/corp/getapprovaldata",
            "/cgi-bin/oa/getapprovalinfo",
            "/cgi-bin/oa/getapprovaldetail",
            "/cgi-bin/oa/applyevent",
            "/cgi-bin/oa/gettemplatedetail",
            "/cgi-bin/oa/approval/*",
            "/cgi-bin/oa/vacation/*",
            "/cgi-bin/oa/journal/get_record_list",
            "/cgi-bin/security/*_oper_log/list",
            "/cgi-bin/msgaudit/get_robot_info",
        ],
        Corp,
        &[(600, MINUTE)],
    ),
    row(&["/cgi-bin/checkin/getcheckin_daydata"], Corp, &[(100, MINUTE)]),
    row(
        &[
            "/cgi-bin/checkin/getcheckin_monthdata",
            "/cgi-bin/checkin/getcheckinschedulist",
            "/cgi-bin/checkin/setcheckinschedulist",
            "/cgi-bin/checkin/getcorpcheckinoption",
            "/cgi-bin/checkin/add_checkin_record",
        ],
        Corp,
        &[(60, MINUTE)],
    ),
    row(&["/cgi-bin/checkin/addcheckinuserface"], Corp, &[(10, MINUTE)]),
    row(&["/cgi-bin/msgaudit/get_permit_user_list"], Corp, &[(1_000, MINUTE)]),
    row(&["/cgi-bin/msgaudit/check_single_agree"], Corp, &[(2_500, MINUTE)]),
    row(&["/cgi-bin/msgaudit/check_room_agree"], Corp, &[(1_500, MINUTE)]),
    row(&["/cgi-bin/msgaudit/groupchat/get"], Corp, &[(2_000, MINUTE)]),
    row(
        &[
            "/cgi-bin/idconvert/unionid_to_external_userid",
            "/cgi-bin/idconvert/unionid_to_pending_id",
            "/cgi-bin/corpgroup/unionid_to_external_userid",
            "/cgi-bin/corpgroup/unionid_to_pending_id",
        ],
        Corp,
        &[(100_000, HOUR), (480_000, DAY), (7_500_000, MONTH)],
    ),
    // Per provider, of which one address has one as a rule.
    row(
        &["/cgi-bin/service/externalcontact/unionid_to_external_userid_3rd"],
        Address,
        &[(50_000, HOUR), (240_000, DAY)],
    ),
    row(&["/cgi-bin/media/uploadimg"], Corp, &[(1_000, DAY), (3_000, MONTH)]),
    row(&["/cgi-bin/corpgroup/rule/add_rule", "/cgi-bin/corpgroup/rule/modify_rule"], Corp, &[(1_000, DAY)]),
];
