//! The links of a replayed job: each rank sends over one and receives over another, whoever is at the other end.

use anyhow::{Context, Result, ensure};
use rudder::transport::hook::Link;
use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A rank that sends at a share of its link's rate, as one does that is far, or serves others too; or all of them, which then receive at that rate too, as
/// where the network serves other jobs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowRank {
    /// Which; none for all.
    pub rank: Option<usize>,
    /// The share.
    pub share: f64,
    /// The first step in which it does.
    pub from: usize,
}

impl SlowRank {
    /// Of a job of so many ranks.
    ///
    /// # Errors
    /// The job has no such rank.
    pub fn check(self, ranks: usize) -> Result<()> {
        if let Some(rank) = self.rank {
            ensure!(rank < ranks, "rank {rank} is to be slow, of {ranks} ranks");
        }
        Ok(())
    }
}

impl FromStr for SlowRank {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (rank, share) = text.split_once(':').with_context(|| {
            format!("slow rank {text:?}: write RANK:SHARE or RANK:SHARE:STEP, such as 0:0.25 or all:0.25:128")
        })?;
        let (share, from) = share.split_once(':').unwrap_or((share, "0"));
        let slow = Self {
            rank: if rank == "all" { None } else { Some(rank.parse().context("the slow rank's number")?) },
            share: share.parse().context("its share")?,
            from: from.parse().context("the step from which on it is slow")?,
        };
        ensure!(
            slow.share > 0.0 && slow.share <= 1.0,
            "slow rank {text:?}: its share of the rate is above 0 and at most 1"
        );
        Ok(slow)
    }
}

impl fmt::Display for SlowRank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rank {
            Some(rank) => write!(f, "{rank}")?,
            None => f.write_str("all")?,
        }
        write!(f, ":{}", self.share)?;
        if self.from > 0 { write!(f, ":{}", self.from) } else { Ok(()) }
    }
}

/// When each rank's links are free again.
pub struct Links {
    link: Link,
    slow: Option<SlowRank>,
    step: usize,
    /// Whether owners' links are shared too; else only readers' are.
    egress: bool,
    out: Vec<Duration>,
    into: Vec<Taken>,
}

/// When a link is taken: spans of time that do not touch, in order.
#[derive(Clone, Debug, Default)]
struct Taken(VecDeque<(Duration, Duration)>);

impl Taken {
    /// Takes the link for so long, from the earliest moment not before `from` at which it is free that long; when that ends. What was over by `now`
    /// is forgotten.
    fn take(&mut self, now: Duration, from: Duration, long: Duration) -> Duration {
        while self.0.front().is_some_and(|(_, ends)| *ends < now) {
            self.0.pop_front();
        }
        let mut begins = from;
        let mut at = 0;
        while let Some(&(_, ends)) = self.0.get(at).filter(|(begun, _)| *begun < begins + long) {
            begins = begins.max(ends);
            at += 1;
        }
        let mut span = (begins, begins + long);
        if self.0.get(at).is_some_and(|(begun, _)| *begun == span.1) {
            span.1 = self.0.remove(at).map_or(span.1, |(_, ends)| ends);
        }
        match at.checked_sub(1).and_then(|before| self.0.get_mut(before)).filter(|(_, ends)| *ends == span.0) {
            Some(before) => before.1 = span.1,
            None => self.0.insert(at, span),
        }
        begins + long
    }
}

impl Links {
    /// Links of so many ranks, all free. Without `egress` an owner sends to all readers at once, as where only what a rank receives is shaped.
    pub fn new(link: Link, slow: Option<SlowRank>, egress: bool, ranks: usize) -> Self {
        Self { link, slow, step: 0, egress, out: vec![Duration::ZERO; ranks], into: vec![Taken::default(); ranks] }
    }

    /// A step of the job begins.
    pub fn begin_step(&mut self, step: usize) {
        self.step = step;
    }

    /// Whether rows arrive at the moment at which they are asked for.
    pub fn are_instant(&self) -> bool {
        self.link.is_none()
    }

    /// When so many bytes have arrived that are asked for now. Both links carry batches one after another; a batch passes through the reader's
    /// while it leaves the owner's. One that its owner's link holds back does not keep others from the reader's meanwhile.
    pub fn arrival(&mut self, now: Duration, owner: usize, reader: usize, bytes: u64) -> Duration {
        let slow = self.slow.filter(|slow| slow.from <= self.step);
        let share = |rank: Option<usize>| slow.filter(|slow| slow.rank == rank).map_or(1.0, |slow| slow.share);
        let carrying = self.link.carrying(bytes).div_f64(share(None));
        let mut begins = now + self.link.latency;
        if self.egress {
            let sent = begins.max(self.out[owner]) + carrying.div_f64(share(Some(owner)));
            self.out[owner] = sent;
            // It takes the reader's link at its own rate, so that the last of it leaves both at once.
            begins = sent - carrying;
        }
        self.into[reader].take(now, begins, carrying)
    }
}

#[cfg(test)]
mod tests {
    //! Goal: a shared link carries one batch at a time, at either end. Method: batches whose arrivals are worked out by hand.

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn links(egress: bool) -> Links {
        // 1000 bytes take a millisecond.
        Links::new("8mbit,2ms".parse().unwrap(), None, egress, 3)
    }

    #[test]
    fn what_an_owner_holds_back_keeps_nobody_from_the_readers_link() {
        let mut links = Links::new("8mbit,2ms".parse().unwrap(), Some("0:0.1".parse().unwrap()), true, 3);
        assert_eq!(links.arrival(MS, 0, 2, 1000), 13 * MS);
        assert_eq!(links.arrival(MS, 1, 2, 1000), 4 * MS);
        assert_eq!(links.arrival(MS, 1, 2, 8000), 12 * MS, "it fits before");
        assert_eq!(links.arrival(MS, 1, 2, 1000), 14 * MS, "and this one does not");
        assert_eq!(links.into[2].0.len(), 1);
        assert_eq!(links.arrival(20 * MS, 1, 2, 1000), 23 * MS);
        assert_eq!(links.into[2].0.len(), 1, "what is over is forgotten");
    }

    #[test]
    fn a_slow_rank_sends_slowly_and_receives_as_the_others() {
        let slow: SlowRank = "0:0.25".parse().unwrap();
        assert_eq!(slow.to_string(), "0:0.25");
        let mut links = Links::new("8mbit,2ms".parse().unwrap(), Some(slow), true, 3);
        assert_eq!(links.arrival(MS, 0, 1, 1000), 7 * MS, "four times a millisecond");
        assert_eq!(links.arrival(10 * MS, 2, 0, 1000), 13 * MS);
        assert!(slow.check(1).is_ok() && "1:0.5".parse::<SlowRank>().unwrap().check(1).is_err());
        let later: SlowRank = "0:0.25:3".parse().unwrap();
        assert_eq!(later.to_string(), "0:0.25:3");
        let mut links = Links::new("8mbit,2ms".parse().unwrap(), Some(later), true, 3);
        links.begin_step(2);
        assert_eq!(links.arrival(MS, 0, 1, 1000), 4 * MS);
        links.begin_step(3);
        assert_eq!(links.arrival(MS, 0, 1, 1000), 8 * MS, "from its step on");
        let all: SlowRank = "all:0.25:3".parse().unwrap();
        assert!(all.to_string() == "all:0.25:3" && all.check(1).is_ok());
        for egress in [false, true] {
            let mut links = Links::new("8mbit,2ms".parse().unwrap(), Some(all), egress, 3);
            assert_eq!(links.arrival(MS, 0, 1, 1000), 4 * MS);
            links.begin_step(3);
            assert_eq!(links.arrival(MS, 2, 1, 1000), 8 * MS, "the reader's link is slow too, and was taken");
            assert_eq!(links.arrival(MS, 2, 0, 1000), if egress { 11 * MS } else { 7 * MS });
        }
        for wrong in ["0", "0:0", "0:2", "x:0.5", "0:0.5:x"] {
            assert!(wrong.parse::<SlowRank>().is_err(), "{wrong}");
        }
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
