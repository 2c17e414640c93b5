//! Why a token is fetched, and in which word that is told.

/// Why a token is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefreshReason {
    /// There was none.
    First,
    /// The one there was has expired.
    Expired,
    /// The upstream refused the one there was.
    Refused {
        /// On a path that had accepted it.
        was_accepted: bool,
    },
    /// The one there is will expire soon.
    Proactive,
    /// An operator asked for it.
    Manual,
    /// Another replica has a newer one.
    OtherReplica,
}

impl RefreshReason {
    /// All there are; `worked` makes no difference to what is told.
    pub(super) const ALL: [Self; 6] = [
        Self::First,
        Self::Expired,
        Self::Refused { was_accepted: true },
        Self::Proactive,
        Self::Manual,
        Self::OtherReplica,
    ];

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
            Self::Proactive => 3,
            Self::Manual => 4,
            Self::OtherReplica => 5,
        }
    }

    /// One word, for logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Expired => "expired",
            Self::Refused { .. } => "refused",
            Self::Proactive => "ahead",
            Self::Manual => "asked",
            Self::OtherReplica => "shared",
        }
    }
}
