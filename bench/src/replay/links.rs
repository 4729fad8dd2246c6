//! The links of a replayed job: each rank sends over one and receives over another, whoever is at the other end.

use rudder::transport::hook::Link;
use std::time::Duration;

/// When each rank's links are free again.
pub struct Links {
    link: Link,
    /// Whether owners' links are shared too; else only readers' are.
    egress: bool,
    out: Vec<Duration>,
    into: Vec<Duration>,
}

impl Links {
    /// Links of so many ranks, all free. Without `egress` an owner sends to all readers at once, as where only what a rank receives is shaped.
    pub fn new(link: Link, egress: bool, ranks: usize) -> Self {
        Self { link, egress, out: vec![Duration::ZERO; ranks], into: vec![Duration::ZERO; ranks] }
    }

    /// Whether rows arrive at the moment at which they are asked for.
    pub fn are_instant(&self) -> bool {
        self.link.is_none()
    }

    /// When so many bytes have arrived that are asked for now. Both links carry batches one after another; a batch passes through the reader's
    /// while it leaves the owner's.
    pub fn arrival(&mut self, now: Duration, owner: usize, reader: usize, bytes: u64) -> Duration {
        let carrying = self.link.carrying(bytes);
        let mut begins = now + self.link.latency;
        let mut sent = Duration::ZERO;
        if self.egress {
            begins = begins.max(self.out[owner]);
            sent = begins + carrying;
            self.out[owner] = sent;
        }
        let arrived = sent.max(begins.max(self.into[reader]) + carrying);
        self.into[reader] = arrived;
        arrived
    }
}

#[cfg(test)]
mod tests {
    //! Goal: a shared link carries one batch at a time, at either end. Method: batches whose arrivals are worked out by hand.

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn links(egress: bool) -> Links {
        // 1000 bytes take a millisecond.
        Links::new("8mbit,2ms".parse().unwrap(), egress, 3)
    }

    #[test]
    fn an_owner_that_two_readers_ask_serves_them_in_turn() {
        let mut links = links(true);
        assert_eq!(links.arrival(MS, 0, 1, 1000), 4 * MS);
        assert_eq!(links.arrival(MS, 0, 2, 1000), 5 * MS);
        assert_eq!(links.arrival(20 * MS, 0, 2, 1000), 23 * MS);
    }

    #[test]
    fn a_reader_receives_from_two_owners_in_turn() {
        for egress in [false, true] {
            let mut links = links(egress);
            assert_eq!(links.arrival(MS, 0, 2, 1000), 4 * MS);
            assert_eq!(links.arrival(MS, 1, 2, 1000), 5 * MS);
        }
        assert_eq!(links(false).arrival(MS, 0, 1, 1000), 4 * MS);
        let mut free = links(false);
        assert_eq!([1, 2].map(|reader| free.arrival(MS, 0, reader, 1000)), [4 * MS, 4 * MS]);
    }
}
