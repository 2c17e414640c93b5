//! Messages as server-sent events, for clients that read them.

use std::{fmt::Write, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, watch},
    time::{Instant, sleep_until},
};

use super::{queue::CallbackQueue, stored_event::StoredEvent, target::Target};

/// How often the state is looked at for messages that another process accepted.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// The interval of comments that keep an idle stream alive.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(15);

/// Whether the key with which a client reads is still its own; asked again and again while it reads.
pub type ReadPermission = Box<dyn Fn() -> bool + Send>;

/// Sends the events of a target to one client.
pub(super) struct PullReader {
    pub(super) queue: CallbackQueue,
    pub(super) target: Arc<Target>,
    /// The client that reads; it must stay listed.
    pub(super) client: String,
    pub(super) is_permitted: ReadPermission,
    pub(super) last_event_id: Option<String>,
    pub(super) sender: mpsc::Sender<Bytes>,
    pub(super) _permit: OwnedSemaphorePermit,
}

impl PullReader {
    /// Sends events until the client is gone, no longer listed or permitted, or `stop` turns true.
    pub(super) async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut changed = self.target.changed.subscribe();
        let (callback, target) = (&*self.target.callback, &*self.target.name);
        let mut after = match &self.last_event_id {
            Some(id) => self.queue.pull_position(callback, target, id).await,
            None => 0,
        };
        let mut last_sent = Instant::now();
        let mut text = ": events follow\n\n".to_owned();
        loop {
            if !text.is_empty() {
                last_sent = Instant::now();
                if self.sender.send(Bytes::from(std::mem::take(&mut text))).await.is_err() {
                    return;
                }
                // Nothing more is read from the state while the client reads slowly.
                tokio::select! {
                    place = self.sender.reserve() => drop(place),
                    _ = stop.wait_for(|stop| *stop) => return,
                }
            }
            if !self.target.is_reader(&self.client) || !(self.is_permitted)() {
                return;
            }
            changed.mark_unchanged();
            let events = match self.queue.pull_after(callback, target, after).await {
                Ok(events) => events,
                Err(error) => {
                    tracing::warn!(callback, target, %error, "callback queue unreadable");
                    Vec::new()
                }
            };
            for (version, event) in &events {
                after = *version;
                write_event(&mut text, event);
            }
            if !events.is_empty() {
                continue;
            }
            tokio::select! {
                _ = changed.changed() => {}
                () = sleep_until(Instant::now() + POLL_INTERVAL) => {}
                () = self.sender.closed() => return,
                _ = stop.wait_for(|stop| *stop) => return,
            }
            if last_sent.elapsed() >= HEARTBEAT_INTERVAL {
                text.push_str(":\n\n");
            }
        }
    }
}

/// One event; a message of several lines has several `data` lines, which the client joins again.
fn write_event(text: &mut String, event: &StoredEvent) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "id: {}", event.head.id);
    let message = String::from_utf8_lossy(&event.message);
    let message = message.replace("\r\n", "\n").replace('\r', "\n");
    for line in message.split('\n') {
        let _ = writeln!(text, "data: {line}");
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::{super::stored_event::tests::event, *};

    #[test]
    fn lines_of_a_message_are_lines_of_data() {
        let mut event = event("7", 1);
        event.message = Zeroizing::new(b"<xml>\r\n<a/>\n\n</xml>".to_vec());
        let mut text = String::new();
        write_event(&mut text, &event);
        assert_eq!(text, "id: 7\ndata: <xml>\ndata: <a/>\ndata: \ndata: </xml>\n\n");
    }
}
