//! Takes messages: stores each for its targets, and responds to WeCom.

use std::{net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    sync::oneshot,
    time::{Instant, error::Elapsed, timeout_at},
};

use super::{
    CallbackResponse, Callbacks, Endpoint, PushedMessage, ReceiveResult,
    attempt::attempt,
    delivery::{ATTEMPT_TIMEOUT, finish},
    handoff::NameClaim,
    queue::{NewEvent, NewEventKind, PendingEvent, message_hash, new_id, pending_name},
    stored_event::{EventHead, RawHead, StoredEvent},
    target::{Target, TargetSettings},
};
use crate::{
    config::{DeliveryMethod, TargetForm},
    state::Precondition,
    time::clock,
    wecom::callback::message::Format,
};

/// How long the state may take to make a message durable: WeCom counts a response after 1 s as late.
const DURABLE_TIMEOUT: Duration = Duration::from_millis(900);
/// How long a target may take for its reply: WeCom waits 5 s.
const REPLY_TIMEOUT: Duration = Duration::from_secs(4);
/// When a message is sent again whose first attempt, for a reply, was not finished by a process that was killed.
const REPLY_LEASE: Duration = Duration::from_secs(20);

impl Callbacks {
    /// Stores a message for its targets and returns the response to WeCom: the endpoint's answer, or the reply of a
    /// target. Fails if the message cannot be made durable in time.
    pub async fn accept(
        &self,
        endpoint: &Arc<Endpoint>,
        message: PushedMessage,
        caller: Option<IpAddr>,
    ) -> Result<CallbackResponse, ReceiveResult> {
        let received = Instant::now();
        let now = clock::unix_now_millis();
        let bytes = self.take_suite_message(endpoint, &message, received + DURABLE_TIMEOUT).await?;
        let (events, reply) = new_events(endpoint, &message, &bytes, now);
        let (targets, events): (Vec<_>, Vec<_>) = events.into_iter().unzip();
        let claims: Vec<_> =
            targets.iter().zip(&events).map(|(target, event)| self.claim(target, event)).collect();
        let deadline = received + DURABLE_TIMEOUT;
        let stored = self.store(endpoint, &message, &events, caller, deadline).await?;
        let accepted = match self.is_of_unknown_corp(endpoint, &message) {
            true => ReceiveResult::UnknownCorp,
            false => ReceiveResult::Accepted,
        };
        endpoint.count(if stored.is_some() { accepted } else { ReceiveResult::Duplicate });
        let Some(version) = stored else { return Ok(endpoint.answer()) };
        endpoint.received.accepted_lately.add(now / 1000);
        for ((target, new), claim) in targets.into_iter().zip(events).zip(claims) {
            match claim {
                Some(claim) => claim.hand_over(new.event, version),
                None => target.changed.send_replace(()),
            }
        }
        Ok(match reply {
            None => endpoint.answer(),
            Some((target, settings, event)) => {
                match self.first_attempt(target, settings.clone(), event, received).await {
                    Ok(Some(body)) => endpoint.reply(&message, &settings, &body),
                    Ok(None) => endpoint.answer(),
                    Err(_) => CallbackResponse::empty(),
                }
            }
        })
    }

    /// Claims a message that this process will deliver right after it is stored; `None` for one that is read from the
    /// state.
    fn claim(&self, target: &Target, NewEvent { kind, event, .. }: &NewEvent<'_>) -> Option<NameClaim> {
        let is_handed_over = matches!(kind, NewEventKind::Due { is_sent_already: false })
            && *self.is_held.borrow()
            && target.handoff.has_room_for(event);
        is_handed_over.then_some(())?;
        NameClaim::new(target.handoff.clone(), pending_name(&target.callback, &target.name, false, event))
    }

    /// Stores a message; returns the version of its records, or `None` if it was stored before.
    async fn store(
        &self,
        endpoint: &Endpoint,
        message: &PushedMessage,
        events: &[NewEvent<'_>],
        caller: Option<IpAddr>,
        deadline: Instant,
    ) -> Result<Option<u64>, ReceiveResult> {
        let now = clock::unix_now_millis();
        let callers = &endpoint.received.callers;
        let note =
            caller.and_then(|caller| Some((caller, callers.note(&endpoint.name, caller, now)?))).unzip();
        let hash = message_hash(message.decrypted.receive_id(), message.decrypted.message());
        match timeout_at(deadline, self.queue.insert(&endpoint.name, &hash, events, note.1, now)).await {
            Ok(Ok(version)) => {
                if let (Some(caller), Some(_)) = (note.0, version) {
                    callers.mark_noted(caller, now);
                }
                Ok(version)
            }
            Ok(Err(error)) => {
                tracing::error!(callback = endpoint.name, %error, "callback not stored");
                Err(ReceiveResult::NotDurable)
            }
            Err(_) => {
                tracing::error!(callback = endpoint.name, "callback not stored in time");
                Err(ReceiveResult::NotDurable)
            }
        }
    }

    /// Sends a message to a target whose response goes back to WeCom. `None` if the attempt failed, an error if it takes
    /// too long; it goes on then, and counts as any other.
    async fn first_attempt(
        &self,
        target: Arc<Target>,
        settings: Arc<TargetSettings>,
        event: StoredEvent,
        received: Instant,
    ) -> Result<Option<Bytes>, Elapsed> {
        let (sender, body) = oneshot::channel();
        let (queue, guard) = (self.queue.clone(), self.delivery_guard.lock().clone());
        self.runtime.spawn(async move {
            let result = attempt(&target, &settings, &event, ATTEMPT_TIMEOUT).await;
            let result = result.map(|body| drop(sender.send(body)));
            let name = pending_name(&target.callback, &target.name, false, &event);
            let mut pending = PendingEvent { name, precondition: Precondition::Present, event };
            if let Err(error) = finish(&queue, &target, &settings, &mut pending, result).await {
                tracing::warn!(callback = target.callback, target = target.name, %error, "callback queue not updated");
            }
            drop(guard);
        });
        Ok(timeout_at(received + REPLY_TIMEOUT, body).await?.ok())
    }
}

/// The target that replies to a message, and the message as it was stored for it.
type ReplyAttempt = (Arc<Target>, Arc<TargetSettings>, StoredEvent);

/// What is stored of a message, `bytes` for targets that get it decrypted; and what is sent for a reply.
fn new_events<'a>(
    endpoint: &'a Endpoint,
    message: &PushedMessage,
    bytes: &[u8],
    now: u64,
) -> (Vec<(&'a Arc<Target>, NewEvent<'a>)>, Option<ReplyAttempt>) {
    let template = event_head(message, now);
    let (mut events, mut reply) = (Vec::new(), None);
    for target in &endpoint.targets {
        let Some(settings) = target.settings.load_full() else { continue };
        if !message.is_among(&settings.config.events) {
            continue;
        }
        let mut event = new_event(&settings, &template, message, bytes);
        let kind = match &settings.push {
            None => NewEventKind::Pull,
            Some(push) if push.ordered => NewEventKind::Ordered,
            Some(push) if push.reply => {
                event.head.due += u64::try_from(REPLY_LEASE.as_millis()).unwrap_or_default();
                reply = Some((target.clone(), settings.clone(), event.clone()));
                NewEventKind::Due { is_sent_already: true }
            }
            Some(_) => NewEventKind::Due { is_sent_already: false },
        };
        events.push((target, NewEvent { target: &target.name, kind, event }));
    }
    (events, reply)
}

/// What is stored of a message for each of its targets.
fn event_head(message: &PushedMessage, now: u64) -> EventHead {
    let lifetime = u64::try_from(message.lifetime().as_millis()).unwrap_or(u64::MAX);
    EventHead {
        id: new_id(now),
        event: message.event().to_owned(),
        received_at: now,
        deadline: now + lifetime,
        due: now,
        attempts: 0,
        last_error: None,
        receive_id: message.decrypted.receive_id().to_owned(),
        is_json: message.format() == Format::Json,
        agent_id: message.envelope.agent_id.clone(),
        to_user_name: message.envelope.to_user_name.clone(),
        raw: None,
    }
}

/// A message for one target, with these bytes; a raw one with what WeCom sent.
fn new_event(
    settings: &TargetSettings,
    head: &EventHead,
    message: &PushedMessage,
    bytes: &[u8],
) -> StoredEvent {
    let message_bytes = bytes.to_vec().into();
    let mut event = StoredEvent { head: head.clone(), message: message_bytes, raw_body: Vec::new() };
    if matches!(&settings.config.method, DeliveryMethod::Push { form: TargetForm::Raw, .. }) {
        let (query, content_type) = (message.query.clone(), message.content_type.clone());
        event.head.raw = Some(RawHead { query, content_type });
        event.raw_body = message.body.to_vec();
    }
    event
}
