//! Rows on their way: one [`Flight`] a node, however many requests wait for it.

use super::RequestId;
use crate::id::{NodeId, Slot};
use crate::node_table::NodeTable;

/// Index of a flight in its arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FlightId(pub u32);

/// Where a row lands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Landing {
    /// At a place of the rows of the request that asked first.
    Rows(RequestId, u32),
    /// In its slot of the buffer.
    Slot(Slot),
}

/// One row that is wanted and not here yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flight {
    pub table: u32,
    pub node: NodeId,
    pub owner: u32,
    pub row: u64,
    pub landing: Landing,
    /// The slot that gets a copy once a demand row has landed.
    pub admitted: Option<Slot>,
    /// That slot is one of the initial fill: it waits for its row whoever else has asked for it.
    pub fills: bool,
    /// Another rank of the host keeps the node: it is handed the row.
    pub offered: bool,
    /// Head of the list of those who wait beside the landing.
    waiters: u32,
    pub attempts: u8,
    /// The batch that carries it.
    pub batch: u32,
    live: bool,
}

#[derive(Clone, Copy, Debug)]
struct Waiter {
    request: RequestId,
    place: u32,
    next: u32,
}

const NONE: u32 = u32::MAX;

/// Which flight of a table brings a node's row.
///
/// Rows that land are not taken out one by one, which would cost a cache miss each while others wait to be booked: an entry holds as long as its
/// flight is live and the node's, and those that do not are swept out together where room is needed.
pub(super) struct FlightIndex {
    table: u32,
    by_node: NodeTable<FlightId>,
}

impl Default for FlightId {
    /// No flight's.
    fn default() -> Self {
        Self(NONE)
    }
}

impl FlightIndex {
    pub fn with_capacity(table: usize, nodes: usize) -> Self {
        Self { table: table as u32, by_node: NodeTable::with_capacity(nodes) }
    }

    /// The flight that brings the node's row, if any does.
    pub fn find(&self, node: NodeId, flights: &Flights) -> Option<FlightId> {
        self.by_node.get(node).filter(|&id| flights.carries(id, self.table, node))
    }

    /// Asks for where a node's flight is noted, so that it is in the cache some nodes later.
    #[inline]
    pub fn prefetch(&self, node: NodeId) {
        self.by_node.prefetch(node);
    }

    /// Where the node's flight is noted, and that flight, if it has one.
    pub fn entry(&mut self, node: NodeId, flights: &Flights) -> (&mut FlightId, Option<FlightId>) {
        let entry = self.by_node.entry(node);
        let id = *entry;
        (entry, flights.carries(id, self.table, node).then_some(id))
    }

    /// Notes the node's flight, whatever brought its row before.
    pub fn insert(&mut self, node: NodeId, id: FlightId, flights: &Flights) {
        self.make_room(1, flights);
        *self.by_node.entry(node) = id;
    }

    /// Makes room for so many more nodes; allocates only where twice of what is live has none.
    pub fn make_room(&mut self, nodes: usize, flights: &Flights) {
        if self.by_node.room() >= nodes {
            return;
        }
        if flights.len() == 0 {
            self.by_node.clear();
        } else {
            self.by_node.retain(|node, id| flights.carries(id, self.table, node));
        }
        // With as much room as is taken, the next sweep is as far off as this one is long.
        self.by_node.reserve(nodes.max(self.by_node.len()));
    }
}

/// Every flight of a pipeline, and who waits for it. Places are reused, so that a warm arena allocates nothing.
#[derive(Debug)]
pub(super) struct Flights {
    flights: Vec<Flight>,
    free: Vec<u32>,
    waiters: Vec<Waiter>,
    free_waiter: Option<u32>,
}

impl Flights {
    pub fn with_capacity(flights: usize) -> Self {
        Self {
            flights: Vec::with_capacity(flights),
            free: Vec::with_capacity(flights),
            waiters: Vec::with_capacity(flights),
            free_waiter: None,
        }
    }

    pub fn insert(&mut self, table: u32, node: NodeId, owner: u32, row: u64, landing: Landing) -> FlightId {
        let flight = Flight {
            table,
            node,
            owner,
            row,
            landing,
            admitted: None,
            fills: false,
            offered: false,
            waiters: NONE,
            attempts: 0,
            batch: NONE,
            live: true,
        };
        match self.free.pop() {
            Some(at) => {
                self.flights[at as usize] = flight;
                FlightId(at)
            }
            None => {
                self.flights.push(flight);
                FlightId((self.flights.len() - 1) as u32)
            }
        }
    }

    pub fn get(&self, id: FlightId) -> &Flight {
        &self.flights[id.0 as usize]
    }

    pub fn get_mut(&mut self, id: FlightId) -> &mut Flight {
        &mut self.flights[id.0 as usize]
    }

    /// Forgets a flight that nobody waits for.
    pub fn remove(&mut self, id: FlightId) {
        debug_assert_eq!(self.get(id).waiters, NONE, "a flight ends after its waiters");
        let flight = self.get_mut(id);
        (flight.batch, flight.live) = (NONE, false);
        self.free.push(id.0);
    }

    /// Whether the flight is under way with this node's row of the table.
    fn carries(&self, id: FlightId, table: u32, node: NodeId) -> bool {
        let flight = self.flights.get(id.0 as usize);
        flight.is_some_and(|flight| flight.live && flight.node == node && flight.table == table)
    }

    /// Lets one more place wait for the row.
    pub fn wait(&mut self, id: FlightId, request: RequestId, place: u32) {
        let waiter = Waiter { request, place, next: self.get(id).waiters };
        let at = match self.free_waiter {
            Some(at) => {
                let next = self.waiters[at as usize].next;
                self.free_waiter = (next != NONE).then_some(next);
                self.waiters[at as usize] = waiter;
                at
            }
            None => {
                self.waiters.push(waiter);
                (self.waiters.len() - 1) as u32
            }
        };
        self.get_mut(id).waiters = at;
    }

    /// The flights that a request waits for, each with the number of its rows that it brings.
    pub fn awaited(&self, request: RequestId) -> impl Iterator<Item = (&Flight, usize)> {
        self.flights.iter().filter(|flight| flight.live).filter_map(move |flight| {
            let lands = matches!(flight.landing, Landing::Rows(first, _) if first == request);
            let rows = usize::from(lands) + self.waiters_of(flight).filter(|waiter| waiter.request == request).count();
            (rows > 0).then_some((flight, rows))
        })
    }

    fn waiters_of(&self, flight: &Flight) -> impl Iterator<Item = Waiter> {
        let mut at = flight.waiters;
        std::iter::from_fn(move || {
            let waiter = *self.waiters.get(at as usize)?;
            at = waiter.next;
            Some(waiter)
        })
    }

    /// Takes one of those who wait.
    pub fn pop_waiter(&mut self, id: FlightId) -> Option<(RequestId, u32)> {
        let at = self.get(id).waiters;
        if at == NONE {
            return None;
        }
        let Waiter { request, place, next } = self.waiters[at as usize];
        self.get_mut(id).waiters = next;
        self.waiters[at as usize].next = self.free_waiter.unwrap_or(NONE);
        self.free_waiter = Some(at);
        Some((request, place))
    }

    /// Number of flights.
    pub fn len(&self) -> usize {
        self.flights.len() - self.free.len()
    }
}
