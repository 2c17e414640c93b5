//! Messages at the URLs of suites: what they mean for the suite, before they are queued for targets.

use std::sync::Arc;

use tokio::time::{Instant, timeout_at};
use zeroize::Zeroizing;

use super::{Callbacks, Endpoint, PushedMessage, ReceiveResult};
use crate::{
    config::SuiteUrl,
    suites::{SuiteCommand, Suites},
};

impl Callbacks {
    /// Takes what a message means for a suite, which is durable afterwards, and returns what targets get: the message,
    /// with a stand-in in place of the suite_ticket.
    pub(super) async fn take_suite_message(
        &self,
        endpoint: &Endpoint,
        message: &PushedMessage,
        deadline: Instant,
    ) -> Result<Zeroizing<Vec<u8>>, ReceiveResult> {
        let bytes = Zeroizing::new(message.decrypted.message().to_vec());
        let Some((suite, SuiteUrl::Command)) = &endpoint.suite else { return Ok(bytes) };
        let Some(agent) = self.suites.suite_agent(suite) else { return Ok(bytes) };
        let command = SuiteCommand {
            info_type: message.fields.get("InfoType").unwrap_or_default(),
            ticket: message.fields.get("SuiteTicket"),
            auth_code: message.fields.get("AuthCode"),
            corpid: message.fields.get("AuthCorpId"),
        };
        match timeout_at(deadline, self.suites.take_command(&agent, &command)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(callback = endpoint.name, %error, "suite command not stored");
                return Err(ReceiveResult::NotDurable);
            }
            Err(_) => {
                tracing::error!(callback = endpoint.name, "suite command not stored in time");
                return Err(ReceiveResult::NotDurable);
            }
        }
        Ok(match command.ticket.filter(|ticket| !ticket.is_empty()) {
            Some(ticket) => replace_all(&bytes, ticket.as_bytes(), Suites::stand_in_ticket().as_bytes()),
            None => bytes,
        })
    }

    /// Whether a message came for a corp that did not authorise the suite, as far as is known.
    pub(super) fn is_of_unknown_corp(&self, endpoint: &Arc<Endpoint>, message: &PushedMessage) -> bool {
        let Some((suite, SuiteUrl::Data)) = &endpoint.suite else { return false };
        let agent = self.suites.suite_agent(suite);
        agent.is_none_or(|agent| {
            agent.suite().is_none_or(|suite| suite.corp(message.decrypted.receive_id()).is_none())
        })
    }
}

fn replace_all(bytes: &[u8], wanted: &[u8], replacement: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut replaced = Zeroizing::new(Vec::with_capacity(bytes.len() + replacement.len()));
    let mut rest = bytes;
    while let Some(at) = memchr::memmem::find(rest, wanted) {
        replaced.extend_from_slice(&rest[..at]);
        replaced.extend_from_slice(replacement);
        rest = &rest[at + wanted.len()..];
    }
    replaced.extend_from_slice(rest);
    replaced
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_occurrence_is_replaced() {
        for (text, expected) in [("", ""), ("T", "new"), ("aTbTT", "anewbnewnew"), ("abc", "abc")] {
            assert_eq!(&*replace_all(text.as_bytes(), b"T", b"new"), expected.as_bytes());
        }
    }
}
