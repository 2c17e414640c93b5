//! Why a token is fetched, and the label for it in logs and metrics.

/// Why a token is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefreshReason {
    /// There was no token.
    First,
    /// The token had expired.
    Expired,
    /// WeCom refused the token.
    Refused {
        /// The path that refused it had accepted it before.
        was_accepted: bool,
    },
    /// The token expires soon.
    Proactive,
    /// An operator requested it.
    Manual,
    /// Another replica has fetched a newer token.
    OtherReplica,
}

impl RefreshReason {
    /// All reasons; `was_accepted` makes no difference to the label.
    pub(super) const ALL: [Self; 6] = [
        Self::First,
        Self::Expired,
        Self::Refused { was_accepted: true },
        Self::Proactive,
        Self::Manual,
        Self::OtherReplica,
    ];

    /// Whether WeCom refused the token.
    pub(super) fn is_refusal(self) -> bool {
        matches!(self, Self::Refused { .. })
    }

    /// Its index in [`Self::ALL`].
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

    /// The label in logs and metrics; part of their interface, so it does not follow the names here.
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
