//! Why a token is fetched, and in which word that is told.

/// Why a token is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// There was none.
    First,
    /// The one there was has expired.
    Expired,
    /// The upstream refused the one there was.
    Refused,
    /// The one there is will expire soon.
    Ahead,
    /// An operator asked for it.
    Asked,
    /// Another replica has a newer one.
    Shared,
}

impl Reason {
    /// One word, for logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Expired => "expired",
            Self::Refused => "refused",
            Self::Ahead => "ahead",
            Self::Asked => "asked",
            Self::Shared => "shared",
        }
    }
}
