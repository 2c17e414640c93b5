//! Where a request waits before it is sent: for a token, for a ticket that another request fetches, for a place in flight.
//! How many wait is bounded; beyond the bound a request fails at once.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Forward, Proxy,
    record::Record,
    refusal::{Kind, Refusal},
    token::token_unavailable,
};
use crate::{
    directory::Agent,
    limits::places::{NoPlace, Place},
    tokens::Token,
    traces::Doing,
    upload::Upload,
};

impl Proxy {
    /// Lets a request wait until `record.wait_permit` is taken away again, if not too many do.
    pub(super) fn begin_wait(&self, forward: &Forward<'_>, record: &mut Record) -> Result<(), Refusal> {
        forward.waits.set(true);
        if record.wait_permit.is_some() {
            return Ok(());
        }
        let client = record.client.as_ref().map(|client| client.name.as_str());
        let agent = record.agent.as_ref().map(|agent| agent.name.as_str());
        let header_bytes = forward.fields.text_bytes() + forward.target.bytes();
        match self.rules.waiting.try_acquire(client, agent, header_bytes) {
            Some(permit) => record.wait_permit = Some(permit),
            None => {
                let words =
                    "too many requests are waiting for a token of their agents; come again in a moment";
                return Err(overloaded(words));
            }
        }
        Ok(())
    }

    /// The agent's token, where there is none that serves at once.
    pub(super) async fn wait_for_token(
        &self,
        forward: &Forward<'_>,
        agent: &Arc<Agent>,
        upload: Option<&mut Upload>,
        record: &mut Record,
    ) -> Result<Arc<Token>, Box<Refusal>> {
        self.begin_wait(forward, record)?;
        upload.into_iter().for_each(Upload::detach);
        let asked = Instant::now();
        record.begin(Doing::Token, asked);
        let fetched = agent.slot.current().await;
        record.wait_permit = None;
        record.waited_for_token(asked, fetched.is_err());
        fetched.map_err(|failure| Box::new(token_unavailable(&failure, agent)))
    }

    /// A place among the requests in flight, where there is none at once.
    pub(super) async fn wait_for_place(
        &self,
        forward: &Forward<'_>,
        upload: Option<&mut Upload>,
        record: &mut Record,
    ) -> Result<Place, Refusal> {
        forward.waits.set(true);
        upload.into_iter().for_each(Upload::detach);
        let places = &self.rules.in_flight;
        let client = record.client.as_ref().map(|client| client.name.as_str());
        let agent = record.agent.as_ref().map(|agent| agent.name.as_str());
        let flow = places.flow(client, agent, &forward.target.route);
        record.begin_now(Doing::Queue);
        let waited = places.wait(flow, self.rules.queue_timeout).await.map_err(no_place);
        record.now = Instant::now();
        record.end_now(waited.as_ref().err().map(|refusal| refusal.kind));
        waited
    }
}

fn no_place(none: NoPlace) -> Refusal {
    match none {
        NoPlace::Closed => Refusal::shutting_down(),
        NoPlace::Late => {
            overloaded("too many requests are with WeCom and none was done in time; come again in a moment")
        }
        NoPlace::Full => overloaded("too many requests are waiting for WeCom; come again in a moment"),
    }
}

fn overloaded(words: &'static str) -> Refusal {
    Refusal::new(Kind::Overloaded, words).retry_after(Duration::from_secs(1))
}
