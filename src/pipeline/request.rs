//! Requests: gathers that have been started and are not collected yet.

use crate::error::Error;
use std::time::Duration;

/// Names a request until it is collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId {
    pub(super) index: u32,
    pub(super) generation: u32,
}

impl RequestId {
    /// Its place among the requests that exist at one time.
    pub fn index(self) -> usize {
        self.index as usize
    }
}

#[derive(Debug, Default)]
pub(super) enum Outcome {
    /// Rows may still arrive.
    #[default]
    Live,
    /// It ended with an error; it is over once nothing can write its rows any more.
    Failed(Error),
    /// Nobody wants it any more.
    Cancelled,
}

#[derive(Debug, Default)]
pub(super) struct Request {
    pub generation: u32,
    pub used: bool,
    pub rows: usize,
    /// Rows that are not in place.
    pub missing: u32,
    /// Rows that a transport may still write straight into its memory.
    pub exposed: u32,
    pub started: Duration,
    pub deadline: Duration,
    pub outcome: Outcome,
    /// A transport may write to its rows, though staging is there for those of other requests.
    pub direct: bool,
    /// A transport could not promise to leave its memory alone: it must never be freed.
    pub leaked: bool,
}

impl Request {
    pub fn is_live(&self) -> bool {
        matches!(self.outcome, Outcome::Live)
    }

    pub fn is_over(&self) -> bool {
        match self.outcome {
            Outcome::Live => self.missing == 0,
            Outcome::Failed(_) | Outcome::Cancelled => self.exposed == 0 || self.leaked,
        }
    }
}

/// The arena of requests.
#[derive(Debug, Default)]
pub(super) struct Requests {
    requests: Vec<Request>,
}

impl Requests {
    /// Opens one, or `None` where so many are open.
    pub fn open(&mut self, most: usize, rows: usize, started: Duration, deadline: Duration) -> Option<RequestId> {
        let index = match self.requests.iter().position(|request| !request.used) {
            Some(index) => index,
            None if self.requests.len() < most => {
                self.requests.push(Request::default());
                self.requests.len() - 1
            }
            None => return None,
        };
        let request = &mut self.requests[index];
        let generation = request.generation.wrapping_add(1);
        *request = Request { generation, used: true, rows, started, deadline, ..Request::default() };
        Some(RequestId { index: index as u32, generation })
    }

    pub fn get(&self, id: RequestId) -> Option<&Request> {
        self.requests.get(id.index()).filter(|request| request.used && request.generation == id.generation)
    }

    pub fn get_mut(&mut self, id: RequestId) -> Option<&mut Request> {
        self.requests.get_mut(id.index()).filter(|request| request.used && request.generation == id.generation)
    }

    pub fn iter(&self) -> impl Iterator<Item = (RequestId, &Request)> {
        self.requests
            .iter()
            .enumerate()
            .filter(|(_, request)| request.used)
            .map(|(index, request)| (RequestId { index: index as u32, generation: request.generation }, request))
    }
}
