//! Callers whose header lines came before. Who they are was found out once, key and all; as long as the directory is the
//! same, so is the answer.

use std::{
    cell::RefCell,
    sync::{Arc, Weak},
};

use crate::{
    directory::{Client, Directory},
    fields::Fields,
};

/// How many one worker remembers.
const MOST: usize = 256;

/// The callers that one worker remembers.
pub(super) struct Acquaintances(RefCell<Vec<Option<Acquaintance>>>);

struct Acquaintance {
    /// Held, so that their mark is nobody else's.
    fields: Fields,
    directory: Weak<Directory>,
    /// Whose key they show; `None` where they show none.
    client: Option<Arc<Client>>,
}

impl Default for Acquaintances {
    fn default() -> Self {
        Self(RefCell::new((0..MOST).map(|_| None).collect()))
    }
}

impl Acquaintances {
    /// The client whose key these lines show, if any, or `None` where that must be found out.
    pub(super) fn recall(&self, fields: &Fields, directory: &Arc<Directory>) -> Option<Option<Arc<Client>>> {
        let mark = fields.mark()?;
        let known = self.0.borrow();
        let known = known[place(mark)].as_ref()?;
        let is_known =
            known.fields.mark() == Some(mark) && known.directory.as_ptr() == Arc::as_ptr(directory);
        is_known.then(|| known.client.clone())
    }

    /// Remembers the client whose key these lines show, if they are any that come again.
    pub(super) fn remember(&self, fields: &Fields, directory: &Arc<Directory>, client: Option<&Arc<Client>>) {
        let Some(mark) = fields.mark() else { return };
        let acquaintance = Acquaintance {
            fields: fields.clone(),
            directory: Arc::downgrade(directory),
            client: client.cloned(),
        };
        self.0.borrow_mut()[place(mark)] = Some(acquaintance);
    }
}

/// Marks are addresses: their last bits are alike.
fn place(mark: usize) -> usize {
    (mark >> 5) % MOST
}
