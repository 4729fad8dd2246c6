//! A buffer that is watched, and that changes its policy while it runs.

use super::policy::PolicyConfig;
use super::tap::{Call, Feed, tap};
use super::{BufferHints, PrefetchBuffer, WindowPosition};
use crate::controller::OwnerShare;
use crate::error::Result;
use crate::id::NodeId;

/// Minibatches between two reports of what owners have sent.
const OWNERS_INTERVAL: u64 = 8;

impl PrefetchBuffer {
    /// Gives a controller the end of a feed from which it sees what the buffer is asked for, and may change its policy; policy and hints are those that
    /// the buffer was made with. Before the first minibatch.
    ///
    /// # Errors
    /// The buffer cannot change from this policy and back.
    pub fn watch(&mut self, policy: &PolicyConfig, hints: BufferHints) -> Result<Feed> {
        policy.check_follows()?;
        let (end, feed) = tap(self.slots(), policy, hints);
        self.tap = Some(end);
        Ok(feed)
    }

    /// Tells nobody any more; the policy stays what it is.
    pub fn unwatch(&mut self) {
        self.tap = None;
    }

    /// From now on this policy says which rows stay; those that are there stay for the time being, and what is on its way comes. Between minibatches.
    /// Whether it does: the feed is to have prepared that policy.
    pub fn switch(&mut self, policy: &PolicyConfig) -> bool {
        let Some(changing) = self.tap.as_ref().and_then(|tap| tap.prepared(policy)) else { return false };
        let old = std::mem::replace(&mut self.policy, changing);
        self.policy.follow(old, self.missed.capacity());
        self.counters.policies += 1;
        true
    }

    /// Tells who watches that an observed minibatch is over; now and then, what each partition's owner has sent so far.
    pub fn tell_end(&mut self, owners: impl Iterator<Item = OwnerShare>) {
        let Some(tap) = &mut self.tap else { return };
        let many = if self.counters.minibatches.is_multiple_of(OWNERS_INTERVAL) { usize::MAX } else { 0 };
        tap.tell_end(owners.take(many));
        tap.note_largest(self.missed.capacity());
        if let Some(left) = self.policy.take_left() {
            tap.leave(left);
        }
    }

    pub(super) fn tell_lookup(&mut self, nodes: &[NodeId]) {
        self.tap.iter_mut().for_each(|tap| tap.tell(Call::Lookup, nodes));
    }

    pub(super) fn tell_announced(&mut self, position: WindowPosition, nodes: &[NodeId]) {
        self.tap.iter_mut().for_each(|tap| tap.tell(Call::Announce(position), nodes));
    }

    pub(super) fn tell_retired(&mut self, position: WindowPosition, nodes: &[NodeId]) {
        self.tap.iter_mut().for_each(|tap| tap.tell(Call::Retire(position), nodes));
    }
}
