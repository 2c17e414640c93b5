//! Why a token is fetched, and in which word that is told.

/// Why a token is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// There was none.
    First,
    /// The one there was has expired.
    Expired,
    /// The upstream refused the one there was.
    Refused {
        /// On a path that had accepted it.
        worked: bool,
    },
    /// The one there is will expire soon.
    Ahead,
    /// An operator asked for it.
    Asked,
    /// Another replica has a newer one.
    Shared,
}

impl Reason {
    /// All there are; `worked` makes no difference to what is told.
    pub(super) const ALL: [Self; 6] =
        [Self::First, Self::Expired, Self::Refused { worked: true }, Self::Ahead, Self::Asked, Self::Shared];

    /// Whether the upstream refused the token.
    pub(super) fn is_refusal(self) -> bool {
        matches!(self, Self::Refused { .. })
    }

    /// Its place among all.
    pub(super) fn index(self) -> usize {
        match self {
            Self::First => 0,
            Self::Expired => 1,
            Self::Refused { .. } => 2,
            Self::Ahead => 3,
            Self::Asked => 4,
            Self::Shared => 5,
        }
    }

    /// One word, for logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Expired => "expired",
            Self::Refused { .. } => "refused",
            Self::Ahead => "ahead",
            Self::Asked => "asked",
            Self::Shared => "shared",
        }
    }
}
