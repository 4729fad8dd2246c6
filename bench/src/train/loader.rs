//! Minibatches in their order, sampled as far ahead as was asked, announced, and gathered.
//!
//! What is sampled depends on seed, rank and position alone, so every set-up trains on the same minibatches, however far it looks ahead.

use super::job::TABLE;
use crate::sampler::{EpochOrder, Minibatch, Sampler};
use anyhow::Result;
use rudder::memory::Rows;
use rudder::{Engine, NodeId, Request, StreamId, Ticket};
use std::collections::VecDeque;
use std::time::Instant;

/// The only order of minibatches that a rank has.
const STREAM: StreamId = StreamId(0);

/// A minibatch whose rows are on their way.
pub struct Gather {
    /// What was sampled.
    pub minibatch: Minibatch,
    request: Request,
}

impl Gather {
    /// Starts to gather a minibatch's rows.
    ///
    /// # Errors
    /// The engine refuses.
    pub fn start(engine: &Engine, minibatch: Minibatch, ticket: Option<Ticket>) -> Result<Self> {
        let rows = engine.rows(TABLE, minibatch.input_nodes.len())?;
        let request = engine.start(TABLE, &minibatch.input_nodes, ticket, rows)?;
        Ok(Self { minibatch, request })
    }

    /// Waits for the rows.
    ///
    /// # Errors
    /// They could not be had; the error names the rank and the range.
    pub fn wait(self) -> Result<(Minibatch, Rows)> {
        Ok((self.minibatch, self.request.wait()?))
    }
}

/// The minibatches of all epochs.
pub struct Loader<'a> {
    engine: &'a Engine,
    order: EpochOrder,
    sampler: Sampler,
    lookahead: usize,
    /// The next minibatch to sample, and where to stop.
    next: u64,
    end: u64,
    ahead: VecDeque<(Minibatch, Option<Ticket>)>,
    /// Minibatches to sample into.
    spare: Vec<Minibatch>,
    seeds: Vec<NodeId>,
    /// Seconds of sampling and announcing ahead of need.
    pub ahead_s: f64,
}

impl<'a> Loader<'a> {
    /// The minibatches of so many epochs, announced `lookahead` ahead of the one that is gathered.
    pub fn new(engine: &'a Engine, order: EpochOrder, sampler: Sampler, lookahead: u32, epochs: u32) -> Self {
        let end = order.steps() * u64::from(epochs);
        let (ahead, spare, seeds) = (VecDeque::new(), Vec::new(), Vec::new());
        Self { engine, order, sampler, lookahead: lookahead as usize, next: 0, end, ahead, spare, seeds, ahead_s: 0.0 }
    }

    /// Starts the next minibatch's gather, or returns `None` after the last one.
    ///
    /// # Errors
    /// The engine refuses an announcement or the gather.
    pub fn start_next(&mut self) -> Result<Option<Gather>> {
        self.look_ahead()?;
        if self.ahead.is_empty() {
            self.sample()?;
        }
        let Some((minibatch, ticket)) = self.ahead.pop_front() else { return Ok(None) };
        Gather::start(self.engine, minibatch, ticket).map(Some)
    }

    /// Takes a minibatch back, so that the next one needs no memory of its own.
    pub fn recycle(&mut self, minibatch: Minibatch) {
        self.spare.push(minibatch);
    }

    /// Samples and announces until the minibatch that comes next has `lookahead` others behind it.
    fn look_ahead(&mut self) -> Result<()> {
        if self.lookahead == 0 {
            return Ok(());
        }
        let began = Instant::now();
        while self.ahead.len() <= self.lookahead && self.next < self.end {
            self.sample()?;
        }
        self.ahead_s += began.elapsed().as_secs_f64();
        Ok(())
    }

    fn sample(&mut self) -> Result<()> {
        if self.next == self.end {
            return Ok(());
        }
        let position = self.order.position(self.next);
        self.order.seeds(position, &mut self.seeds);
        let mut minibatch = self.spare.pop().unwrap_or_default();
        self.sampler.sample(position, &self.seeds, &mut minibatch);
        self.next += 1;
        let ticket = match self.lookahead {
            0 => None,
            _ => Some(self.engine.announce(STREAM, &[TABLE], &minibatch.input_nodes)?),
        };
        self.ahead.push_back((minibatch, ticket));
        Ok(())
    }
}
