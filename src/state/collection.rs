//! The collections of records.

/// Declares each collection with its name in the state, and whether the listener follows it.
macro_rules! collections {
    ($($(#[$doc:meta])+ $variant:ident = $name:literal, $followed:literal;)+) => {
        /// What a record belongs to; names are unique within a collection.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Collection {
            $($(#[$doc])+ $variant,)+
        }

        impl Collection {
            /// All collections.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name in the state and in messages; never changes.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// Whether records are loaded at the start and their changes delivered to the listener.
            pub fn is_followed(self) -> bool {
                match self { $(Self::$variant => $followed),+ }
            }
        }
    };
}

collections! {
    /// Agents made at run time.
    Agents = "agents", true;
    /// Clients made at run time.
    Clients = "clients", true;
    /// Which client has which key, by a hash of the key's hash.
    ClientKeys = "client_keys", false;
    /// Authorised corps of suites.
    Corps = "corps", true;
    /// The newest suite_ticket of each suite.
    SuiteTickets = "suite_tickets", true;
    /// Corps that a file names and that withdrew their authorisation.
    CancelledCorps = "cancelled_corps", true;
    /// The auth_codes that are being redeemed.
    AuthCodes = "auth_codes", false;
    /// WeCom's responses to the auth_codes that were redeemed lately, and claims of replicas that redeem one.
    RedeemedCodes = "redeemed_codes", false;
    /// The used `state`s of install links.
    InstallStates = "install_states", false;
    /// Stand-ins for permanent codes, by hash.
    StandIns = "stand_ins", true;
    /// Responses to requests with an Idempotency-Key.
    Idempotency = "idempotency", false;
    /// Hashes of callback messages received lately.
    CallbackDedupe = "callback_dedupe", false;
    /// Callback messages that wait for their targets.
    CallbackPending = "callback_pending", false;
    /// Callback messages that their targets did not accept in time.
    CallbackDead = "callback_dead", false;
    /// Callback messages that clients read.
    CallbackPull = "callback_pull", false;
    /// What operators see of targets of callbacks, and the addresses that pushed.
    CallbackStatus = "callback_status", false;
    /// Which process delivers callbacks.
    CallbackLease = "callback_lease", false;
}

impl Collection {
    /// The collection of this name; `None` for one of another version of the program.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|collection| collection.name() == name)
    }
}
