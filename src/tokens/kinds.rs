//! The kinds of tokens and tickets, a file for each: how it is fetched, what it waits for, what voids it, how a request
//! carries it.

pub mod access_token;
pub mod corp;
pub mod json_call;
pub mod provider;
pub mod suite;
pub mod ticket;

use std::sync::Arc;

use arc_swap::ArcSwap;

use self::suite::SuiteTicket;
use super::{CachedToken, Credentials, FetchError, FetchToken};
use crate::{text::SharedStr, wecom::response::GettokenResponse};

/// How the token of an entry is fetched.
#[derive(Clone)]
pub enum TokenKind {
    /// By gettoken, for an application, and for a customized app in one corp.
    AccessToken,
    /// That of a service provider.
    Provider,
    /// That of a suite, with its newest ticket.
    Suite(Arc<SuiteTicket>),
    /// That of a corp, with the entry of its suite's token. A reload replaces the entry when the suite's secret changes.
    Corp(Arc<ArcSwap<CachedToken>>),
}

impl TokenKind {
    /// The kind in a `CredentialId`.
    pub(in crate::tokens) fn id_kind(&self) -> &'static str {
        match self {
            Self::AccessToken => access_token::ID_KIND,
            Self::Provider => provider::ID_KIND,
            Self::Suite(_) => suite::ID_KIND,
            Self::Corp(_) => corp::ID_KIND,
        }
    }

    /// The method and the path of the call that fetches it.
    pub(in crate::tokens) fn call(&self) -> (&'static str, &'static str) {
        match self {
            Self::AccessToken => ("GET", "/cgi-bin/gettoken"),
            Self::Provider => ("POST", "/cgi-bin/service/get_provider_token"),
            Self::Suite(_) => ("POST", "/cgi-bin/service/get_suite_token"),
            Self::Corp(_) => ("POST", "/cgi-bin/service/get_corp_token"),
        }
    }

    /// Whether attempts are bound by the budget for failed secrets of the address: a wrong permanent code concerns one
    /// corp only, and no corp waits behind another.
    pub(in crate::tokens) fn risks_address(&self) -> bool {
        !matches!(self, Self::Corp(_))
    }

    /// Fetches a token once.
    pub(in crate::tokens) async fn fetch(
        &self,
        fetcher: &dyn FetchToken,
        credentials: &Credentials,
    ) -> Result<GettokenResponse, FetchError> {
        match self {
            Self::AccessToken => fetcher.fetch(credentials).await,
            Self::Provider => provider::fetch(fetcher, credentials).await,
            Self::Suite(ticket) => suite::fetch(fetcher, credentials, ticket).await,
            Self::Corp(suite) => corp::fetch(credentials, suite.load_full()).await,
        }
    }
}

/// Whose token an entry has, and how it is fetched.
pub struct TokenSpec<'a> {
    /// The agent's name, in logs and budgets.
    pub agent: &'a SharedStr,
    /// The name in counters, where it is another one.
    pub counted_as: Option<&'a str>,
    /// What it is fetched with.
    pub credentials: Credentials,
    /// How it is fetched.
    pub kind: TokenKind,
}
