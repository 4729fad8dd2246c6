//! Tickets: minibatches that were announced and are not gathered yet.

use crate::buffer::WindowPosition;
use crate::id::{NodeId, StreamId};

/// Names an announced minibatch until it is gathered or forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    pub(super) index: u32,
    pub(super) generation: u32,
}

impl Ticket {
    /// The ticket as a number, for languages that know no other handle: never 0.
    pub fn to_bits(self) -> u64 {
        u64::from(self.generation) << 32 | (u64::from(self.index) + 1)
    }

    /// The ticket of a number; one that was given out by no announcement is refused here or where it is used.
    pub fn from_bits(bits: u64) -> Option<Self> {
        let index = (bits as u32).checked_sub(1)?;
        Some(Self { index, generation: (bits >> 32) as u32 })
    }
}

/// What a ticket says of one table.
#[derive(Debug)]
pub(super) struct Part {
    pub table: usize,
    /// The remote nodes, in the order in which they were announced.
    pub nodes: Vec<NodeId>,
    pub position: Option<WindowPosition>,
    /// How many of the nodes have been looked at for prefetching.
    pub cursor: usize,
    /// Gathers of the table that had started when it was announced.
    pub since: u64,
    pub gathered: bool,
}

#[derive(Debug)]
pub(super) struct Announced {
    pub generation: u32,
    pub used: bool,
    pub stream: StreamId,
    pub parts: Vec<Part>,
}

/// The arena of tickets.
#[derive(Debug, Default)]
pub(super) struct Tickets {
    tickets: Vec<Announced>,
}

impl Tickets {
    /// Opens one for so many tables, or `None` where so many tickets are open.
    pub fn open(&mut self, most: usize, stream: StreamId, tables: usize) -> Option<Ticket> {
        let index = match self.tickets.iter().position(|ticket| !ticket.used) {
            Some(index) => index,
            None if self.tickets.len() < most => {
                self.tickets.push(Announced { generation: 0, used: false, stream, parts: Vec::new() });
                self.tickets.len() - 1
            }
            None => return None,
        };
        let ticket = &mut self.tickets[index];
        ticket.generation = ticket.generation.wrapping_add(1);
        ticket.used = true;
        ticket.stream = stream;
        ticket.parts.truncate(tables);
        for part in &mut ticket.parts {
            // Nothing is announced of it yet.
            part.nodes.clear();
            part.gathered = true;
        }
        while ticket.parts.len() < tables {
            ticket.parts.push(Part {
                table: 0,
                nodes: Vec::new(),
                position: None,
                cursor: 0,
                since: 0,
                gathered: true,
            });
        }
        Some(Ticket { index: index as u32, generation: ticket.generation })
    }

    pub fn get_mut(&mut self, id: Ticket) -> Option<&mut Announced> {
        self.tickets.get_mut(id.index as usize).filter(|ticket| ticket.used && ticket.generation == id.generation)
    }

    /// An open ticket of a stream.
    pub fn any_of(&self, stream: StreamId) -> Option<Ticket> {
        let index = self.tickets.iter().position(|ticket| ticket.used && ticket.stream == stream)?;
        Some(Ticket { index: index as u32, generation: self.tickets[index].generation })
    }

    /// Ends a ticket.
    pub fn close(&mut self, id: Ticket) {
        if let Some(ticket) = self.get_mut(id) {
            ticket.used = false;
        }
    }
}

#[cfg(test)]
mod tests {
    //! Goal: a ticket survives being a number. Method: tickets at the ends of their ranges.
    use super::Ticket;

    #[test]
    fn tickets_are_numbers_and_back() {
        for (index, generation) in [(0, 0), (0, 1), (63, u32::MAX), (u32::MAX - 1, 7)] {
            let ticket = Ticket { index, generation };
            assert_ne!(ticket.to_bits(), 0);
            assert_eq!(Ticket::from_bits(ticket.to_bits()), Some(ticket));
        }
        assert_eq!(Ticket::from_bits(0), None);
    }
}
