//! What can be wrong with an agent, in words that hold no secret.

use std::{fmt, net::IpAddr};

use crate::{
    tokens::FetchError,
    upstream::UpstreamErrorKind,
    wecom::{
        errcode::{self, Explanation},
        response::caller_ip,
    },
};

/// What a gateway's page instead of WeCom's answer may come from.
const WRONG_UPSTREAM_HINT: &str = "upstream.url or upstream.via may lead to something else than WeCom";

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// WeCom refused the call.
    Refused {
        /// WeCom's errcode.
        errcode: i64,
        /// WeCom's words.
        errmsg: String,
    },
    /// No connection could be made: the name, the address, the egress proxy or TLS.
    Unreachable(String),
    /// There was a connection, but no whole answer came in time.
    NoResponse(String),
    /// What came is no answer of WeCom's.
    InvalidResponse(String),
    /// The call succeeds, but says that the app is closed.
    AppDisabled,
}

impl Problem {
    /// One word for programs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Refused { .. } => "refused",
            Self::Unreachable(_) => "unreachable",
            Self::NoResponse(_) => "no-answer",
            Self::InvalidResponse(_) => "senseless",
            Self::AppDisabled => "disabled",
        }
    }

    /// WeCom's errcode, where it said one.
    pub fn errcode(&self) -> Option<i64> {
        match self {
            Self::Refused { errcode, .. } => Some(*errcode),
            _ => None,
        }
    }

    /// What it means, what to do and where, if it is one of the common ones.
    pub fn explanation(&self) -> Option<&'static Explanation> {
        match self {
            Self::AppDisabled => errcode::explain(errcode::APP_DISABLED),
            other => errcode::explain(other.errcode()?),
        }
    }

    /// The address that the call came from, as WeCom saw it.
    pub fn source_address(&self) -> Option<IpAddr> {
        match self {
            Self::Refused { errmsg, .. } => caller_ip(errmsg),
            _ => None,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { errcode, errmsg } => write!(f, "errcode {errcode}: {errmsg}"),
            Self::Unreachable(what) => write!(f, "WeCom cannot be reached: {what}"),
            Self::NoResponse(what) => f.write_str(what),
            Self::InvalidResponse(what) => write!(f, "{what}; {WRONG_UPSTREAM_HINT}"),
            Self::AppDisabled => f.write_str("WeCom says that the app is closed"),
        }
    }
}

impl From<UpstreamErrorKind> for Problem {
    fn from(flaw: UpstreamErrorKind) -> Self {
        match flaw {
            UpstreamErrorKind::Unreachable(why) => Self::Unreachable(why.to_string()),
            UpstreamErrorKind::InvalidHead(_) | UpstreamErrorKind::Framing(_) => {
                Self::InvalidResponse(flaw.to_string())
            }
            other => Self::NoResponse(other.to_string()),
        }
    }
}

impl From<FetchError> for Problem {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::Refused { errcode, errmsg } => Self::Refused { errcode, errmsg },
            FetchError::Upstream(flaw) => flaw.into(),
            FetchError::InvalidResponse { .. } => Self::InvalidResponse(error.to_string()),
            FetchError::TimedOut(_)
            | FetchError::OtherReplica(_)
            | FetchError::Throttled { .. }
            | FetchError::Cancelled => Self::NoResponse(error.to_string()),
        }
    }
}
