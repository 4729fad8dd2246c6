//! What listeners tell of connections that they cannot accept.

use std::fmt::Display;

/// Tells of a failure to accept once, not at every attempt: what could not be accepted stays in the backlog and is tried again soon.
pub(crate) struct FailedAccepts {
    listener: &'static str,
    present: Option<String>,
}

impl FailedAccepts {
    /// For the listener of this name.
    pub(crate) fn new(listener: &'static str) -> Self {
        Self { listener, present: None }
    }

    /// Warns of a cause that is not the one of before.
    pub(crate) fn note(&mut self, cause: impl Display) {
        let text = format!("accepting failed: {cause}; raise ulimit -n where descriptors are short");
        if self.present.as_ref() != Some(&text) {
            tracing::warn!("{}: {text}", self.listener);
            self.present = Some(text);
        }
    }

    /// A connection was accepted: the next failure is news.
    pub(crate) fn end(&mut self) {
        self.present = None;
    }

    /// Why the last attempt failed, if it did.
    pub(crate) fn present(&self) -> Option<&str> {
        self.present.as_deref()
    }
}
