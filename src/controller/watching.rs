//! A controller at one end of a feed: what the buffer was asked for is passed on before it observes, and what it decides on is prepared.

use super::{Controller, Decision, Health, Observation};
use crate::buffer::{Event, Feed, Watched};
use crate::error::Result;

/// A controller with the feed of the buffer that it watches.
pub struct Watching {
    inner: Box<dyn Controller>,
    feed: Feed,
    failure: Option<String>,
}

impl Watching {
    /// Shows the controller the buffer.
    ///
    /// # Errors
    /// It cannot work with it.
    pub fn new(mut inner: Box<dyn Controller>, feed: Feed) -> Result<Self> {
        inner.attach(feed.watched())?;
        Ok(Self { inner, feed, failure: None })
    }
}

impl Controller for Watching {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn attach(&mut self, buffer: &Watched) -> Result<()> {
        self.inner.attach(buffer)
    }

    fn watch(&mut self, event: &Event) {
        self.inner.watch(event);
    }

    fn observe(&mut self, observation: &Observation) {
        let inner = &mut self.inner;
        self.feed.pass(|event| inner.watch(event));
        inner.observe(observation);
    }

    fn decide(&mut self) -> Option<Decision> {
        self.failure = None;
        let decision = self.inner.decide()?;
        if let Some(policy) = &decision.policy
            && let Err(cause) = self.feed.prepare(policy)
        {
            self.failure = Some(cause.to_string());
            self.inner.handle_discarded();
            return None;
        }
        Some(decision)
    }

    fn handle_taken(&mut self) {
        self.inner.handle_taken();
    }

    fn handle_discarded(&mut self) {
        self.inner.handle_discarded();
    }

    fn health(&self) -> Health {
        let health = self.inner.health();
        Health { failure: self.failure.clone().or(health.failure), ..health }
    }
}
