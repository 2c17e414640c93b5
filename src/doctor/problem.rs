//! What can be wrong with an agent, in words that hold no secret.

use std::{fmt, net::IpAddr};

use crate::{
    tokens::FetchError,
    upstream::Flaw,
    wecom::{
        errcode::{self, Explanation},
        reply::caller_in,
    },
};

/// What a gateway's page instead of WeCom's answer may come from.
const ELSEWHERE: &str = "upstream.url or upstream.via may lead to something else than WeCom";

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
    NoAnswer(String),
    /// What came is no answer of WeCom's.
    Senseless(String),
    /// The call succeeds, but says that the app is closed.
    Disabled,
}

impl Problem {
    /// One word for programs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Refused { .. } => "refused",
            Self::Unreachable(_) => "unreachable",
            Self::NoAnswer(_) => "no-answer",
            Self::Senseless(_) => "senseless",
            Self::Disabled => "disabled",
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
            Self::Disabled => errcode::explain(errcode::APP_DISABLED),
            other => errcode::explain(other.errcode()?),
        }
    }

    /// The address that the call came from, as WeCom saw it.
    pub fn seen_from(&self) -> Option<IpAddr> {
        match self {
            Self::Refused { errmsg, .. } => caller_in(errmsg),
            _ => None,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { errcode, errmsg } => write!(f, "errcode {errcode}: {errmsg}"),
            Self::Unreachable(what) => write!(f, "WeCom cannot be reached: {what}"),
            Self::NoAnswer(what) => f.write_str(what),
            Self::Senseless(what) => write!(f, "{what}; {ELSEWHERE}"),
            Self::Disabled => f.write_str("WeCom says that the app is closed"),
        }
    }
}

impl From<Flaw> for Problem {
    fn from(flaw: Flaw) -> Self {
        match flaw {
            Flaw::Unreachable(why) => Self::Unreachable(why.to_string()),
            Flaw::Head(_) | Flaw::Framing(_) => Self::Senseless(flaw.to_string()),
            other => Self::NoAnswer(other.to_string()),
        }
    }
}

impl From<FetchError> for Problem {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::Refused { errcode, errmsg } => Self::Refused { errcode, errmsg },
            FetchError::Upstream(flaw) => flaw.into(),
            FetchError::Senseless { .. } => Self::Senseless(error.to_string()),
            FetchError::Late(_)
            | FetchError::Elsewhere(_)
            | FetchError::Held { .. }
            | FetchError::Stopped => Self::NoAnswer(error.to_string()),
        }
    }
}
