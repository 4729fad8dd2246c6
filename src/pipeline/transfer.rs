//! The half of the pipeline that faces the transport: posting, completing, retrying, ending in time.

use super::batch::{Area, Batch, BatchState};
use super::fill::Fill;
use super::flight::{FlightId, Landing};
use super::request::Outcome;
use super::{BLOCKED, Copy, Lane, Pipeline, Place, RequestId, Settled, Source, Transmit, Wanted};
use crate::error::{Error, Result, TransferError};
use crate::id::{PartitionId, Rank, Slot};
use crate::transport::{BatchId, Completion};
use std::time::Duration;

impl Pipeline {
    /// The next batch to post, demand first. It counts as posted until [`handle_posted`](Self::handle_posted) says otherwise.
    pub fn poll_transmit(&mut self, now: Duration) -> Option<Transmit> {
        if self.blocked_until.is_some_and(|until| now < until) {
            return None;
        }
        self.blocked_until = None;
        if let Some(at) = self.demand.iter().position(|&batch| self.is_due(batch, now)) {
            let batch = self.demand.remove(at).expect("it was just found");
            return Some(self.transmit(batch, now));
        }
        // Batches that were promoted or posted since are passed over.
        let batch = loop {
            let Some(&name) = self.prefetch.front() else {
                if self.go_on_filling() {
                    continue;
                }
                return None;
            };
            match self.batches.find(name).filter(|&at| self.batches.get(at).state == BatchState::Queued) {
                Some(at) if !self.batches.get(at).demand => break at,
                _ => self.prefetch.pop_front(),
            };
        };
        if self.prefetch_rows >= self.limits.prefetch_rows_in_flight || !self.is_due(batch, now) {
            return None;
        }
        self.prefetch.pop_front();
        Some(self.transmit(batch, now))
    }

    fn is_due(&self, at: u32, now: Duration) -> bool {
        let batch = self.batches.get(at);
        let room = match batch.area {
            Area::Rows(request) => self.lands_directly(request) || !self.staging.is_empty(),
            Area::Slots(_) => !self.is_pinned(at),
            Area::Staging(_) | Area::Offer(_) => true,
        };
        room && batch.not_before <= now
    }

    /// Whether a transport may write to the request's rows.
    fn lands_directly(&self, request: RequestId) -> bool {
        self.limits.staging_chunks == 0 || self.requests.get(request).is_some_and(|request| request.direct)
    }

    /// A replaced slot may still be copied from by a request that found the old row.
    fn is_pinned(&self, batch: u32) -> bool {
        let batch = self.batches.get(batch);
        let Some(buffer) = &self.lanes[batch.table].table.buffer else { return false };
        batch.places.iter().any(|&slot| buffer.is_pinned(Slot(slot)))
    }

    fn transmit(&mut self, at: u32, now: Duration) -> Transmit {
        let chunk_rows = self.limits.batch_rows as u32;
        let batch = self.batches.get(at);
        let region = self.region(batch.table, batch.owner);
        let staged = matches!(batch.area, Area::Rows(request) if !self.lands_directly(request));
        let batch = self.batches.get_mut(at);
        if staged {
            let chunk = self.staging.pop().expect("poll_transmit has seen a free chunk");
            batch.area = Area::Staging(chunk);
            for (i, place) in batch.places.iter_mut().enumerate() {
                *place = chunk * chunk_rows + i as u32;
            }
        }
        batch.open = batch.rows.len() as u32;
        match batch.area {
            Area::Rows(request) => {
                let open = batch.open;
                if let Some(request) = self.requests.get_mut(request) {
                    request.exposed += open;
                }
            }
            Area::Slots(_) => self.prefetch_rows += batch.rows.len(),
            Area::Staging(_) | Area::Offer(_) => {}
        }
        self.batches.post(at, region.peer, now);
        let batch = self.batches.get_mut(at);
        self.lanes[batch.table].owners[batch.owner as usize].post(now);
        let transmit = Transmit {
            id: BatchId(0),
            table: batch.table,
            region,
            rows: std::mem::take(&mut batch.rows),
            places: std::mem::take(&mut batch.places),
            area: batch.area,
        };
        Transmit { id: self.batches.id(at), ..transmit }
    }

    /// Says how many rows of a batch were accepted, from the first; the rest is posted again later.
    pub fn handle_posted(&mut self, now: Duration, transmit: Transmit, accepted: usize) {
        let Some(at) = self.batches.find(transmit.id) else { return };
        let batch = self.batches.get_mut(at);
        batch.rows = transmit.rows;
        batch.places = transmit.places;
        let refused = batch.rows.len() - accepted;
        if refused == 0 {
            return;
        }
        self.blocked_until = Some(now + BLOCKED);
        let (table, owner, area, request, demand) = (batch.table, batch.owner, batch.area, batch.request, batch.demand);
        batch.open -= refused as u32;
        self.account(area, refused);
        let landing = match (area, request) {
            (Area::Staging(_), Some(request)) => Area::Rows(request),
            _ => area,
        };
        let rest = self.batches.open(table, owner, landing, request, Duration::ZERO);
        for i in accepted..accepted + refused {
            let flight = self.batches.get(at).flights[i];
            self.flights.get_mut(flight).batch = rest;
            let place = self.landing_place(flight);
            let row = self.batches.get(at).rows[i];
            let rest = self.batches.get_mut(rest);
            rest.flights.push(flight);
            rest.rows.push(row);
            rest.places.push(place);
        }
        let batch = self.batches.get_mut(at);
        batch.flights.truncate(accepted);
        batch.rows.truncate(accepted);
        batch.places.truncate(accepted);
        if self.batches.get(at).open == 0 {
            self.lanes[table].owners[owner as usize].end(now);
            self.close_batch(at);
        }
        self.batches.get_mut(rest).demand = demand;
        if demand {
            self.demand.push_front(rest);
        } else {
            self.prefetch.push_front(self.batches.id(rest));
        }
        if let Some(request) = request
            && !self.requests.get(request).is_some_and(|request| request.is_live())
        {
            self.drop_queued(request);
        }
    }

    fn landing_place(&self, flight: FlightId) -> u32 {
        match self.flights.get(flight).landing {
            Landing::Rows(_, place) => place,
            Landing::Slot(slot) => slot.0,
        }
    }

    /// Rows of an area are not posted any more.
    fn account(&mut self, area: Area, rows: usize) {
        match area {
            Area::Rows(request) => {
                if let Some(request) = self.requests.get_mut(request) {
                    request.exposed -= rows as u32;
                }
            }
            Area::Slots(_) => self.prefetch_rows -= rows,
            Area::Staging(_) | Area::Offer(_) => {}
        }
    }

    fn close_batch(&mut self, at: u32) {
        if let Area::Staging(chunk) = self.batches.get(at).area {
            self.staging.push(chunk);
        }
        self.batches.close(at);
    }

    /// Takes in what has completed and appends the copies that it makes due; [`handle_copied`](Self::handle_copied) follows once they are made.
    pub fn handle_completions(&mut self, now: Duration, completions: &[Completion], copies: &mut Vec<Copy>) {
        if !completions.is_empty() {
            self.blocked_until = None;
        }
        for completion in completions {
            self.complete(now, completion, copies);
        }
        self.retry_failed(now);
    }

    fn complete(&mut self, now: Duration, completion: &Completion, copies: &mut Vec<Copy>) {
        let Some(at) = self.batches.find(completion.batch) else { return };
        let count = completion.count;
        let (area, peer) = (self.batches.get(at).area, self.peer(at));
        // A rank that ends takes its rows back before it falls silent.
        if let Err(TransferError::PeerGone(_) | TransferError::StaleRegion { .. }) = completion.status {
            self.leave(peer);
        }
        // The memory of a request that was collected early is somebody else's by now: its rows are had again by those who joined.
        let gone = matches!(area, Area::Rows(request) if self.requests.get(request).is_none());
        if let (Err(_), Area::Rows(request)) = (&completion.status, area) {
            self.settled.push(Settled::Unexposed(request, count));
        }
        for i in completion.first..completion.first + count {
            let batch = self.batches.get(at);
            let flight = batch.flights[i as usize];
            let from = Place { area, index: batch.places[i as usize] };
            match &completion.status {
                Ok(()) if gone => self.failed.push((flight, peer, TransferError::Aborted)),
                Ok(()) => self.land(flight, from, copies),
                Err(error) => self.failed.push((flight, peer, error.clone())),
            }
        }
        let batch = self.batches.get_mut(at);
        batch.open -= count;
        let owner = &mut self.lanes[batch.table].owners[batch.owner as usize];
        if completion.status.is_ok() {
            owner.rows += u64::from(count);
        }
        if matches!(batch.area, Area::Slots(_)) {
            self.prefetch_rows -= count as usize;
        }
        if batch.open == 0 {
            owner.end(now);
            self.close_batch(at);
        }
    }

    /// A row is where the transport was told to put it: it goes on to all who want it.
    fn land(&mut self, id: FlightId, from: Place, copies: &mut Vec<Copy>) {
        let flight = *self.flights.get(id);
        let table = flight.table as usize;
        match (flight.landing, from.area) {
            (Landing::Slot(slot), _) => self.settled.push(Settled::Filled(table, slot)),
            (Landing::Rows(request, _), Area::Rows(_)) => self.settle_placed(request),
            (Landing::Rows(request, place), _) => self.copy_to(table, request, place, from, copies),
        }
        if let (Landing::Rows(..), Some(slot)) = (flight.landing, flight.admitted) {
            self.keep(table, slot, from, copies);
        }
        if flight.offered {
            copies.push(Copy { table, from, to: Place { area: Area::Offer(flight.node), index: 0 } });
        }
        while let Some((request, place)) = self.flights.pop_waiter(id) {
            self.copy_to(table, request, place, from, copies);
        }
        self.flights.remove(id);
    }

    /// Copies an admitted row to its slot, unless somebody still copies the old row out: then it is not worth waiting for.
    fn keep(&mut self, table: usize, slot: Slot, from: Place, copies: &mut Vec<Copy>) {
        let Some(buffer) = &mut self.lanes[table].table.buffer else { return };
        if buffer.is_pinned(slot) {
            buffer.abandon(slot);
            return;
        }
        copies.push(Copy { table, from, to: Place { area: Area::Slots(table), index: slot.0 } });
        self.settled.push(Settled::Filled(table, slot));
    }

    fn copy_to(&mut self, table: usize, id: RequestId, place: u32, from: Place, copies: &mut Vec<Copy>) {
        let Some(request) = self.requests.get_mut(id).filter(|request| request.is_live()) else { return };
        request.exposed += 1;
        copies.push(Copy { table, from, to: Place { area: Area::Rows(id), index: place } });
        self.settle_placed(id);
    }

    /// Notes that a row of a request is where it is wanted; those of one request mostly come together.
    fn settle_placed(&mut self, id: RequestId) {
        match self.settled.last_mut() {
            Some(Settled::Placed(last, rows)) if *last == id => *rows += 1,
            _ => self.settled.push(Settled::Placed(id, 1)),
        }
    }

    /// The copies of the last [`handle_completions`](Self::handle_completions) are made. Returns whether a request is over by it.
    pub fn handle_copied(&mut self) -> bool {
        let mut over = false;
        let mut settled = std::mem::take(&mut self.settled);
        for event in settled.drain(..) {
            match event {
                Settled::Filled(table, slot) => {
                    if let Some(buffer) = &mut self.lanes[table].table.buffer {
                        buffer.filled(slot);
                    }
                }
                Settled::Placed(id, rows) => {
                    if let Some(request) = self.requests.get_mut(id) {
                        request.missing = request.missing.saturating_sub(rows);
                        request.exposed -= rows;
                        over |= request.is_over();
                    }
                }
                Settled::Unexposed(id, rows) => {
                    if let Some(request) = self.requests.get_mut(id) {
                        request.exposed -= rows;
                        over |= request.is_over();
                    }
                }
            }
        }
        self.settled = settled;
        self.fill_where_idle();
        over
    }

    /// What is left to fill may be nothing any more, and who waits for that looks once rows have come or were lost.
    fn fill_where_idle(&mut self) {
        if self.prefetch.is_empty() || self.flights.len() == 0 {
            self.go_on_filling();
        }
    }

    /// Gives each row that failed another try, or its request an error.
    fn retry_failed(&mut self, now: Duration) {
        let mut failed = std::mem::take(&mut self.failed);
        // Rows that fail together, and alike, go again together.
        failed.sort_by_key(|&(id, peer, _)| {
            let flight = self.flights.get(id);
            let request = match flight.landing {
                Landing::Rows(request, _) => request.index + 1,
                Landing::Slot(_) => 0,
            };
            (flight.table, request, flight.attempts, flight.owner, peer, flight.row)
        });
        let key = |pipeline: &Self, (id, peer, error): &(FlightId, Rank, TransferError)| {
            let flight = pipeline.flights.get(*id);
            let request = match flight.landing {
                Landing::Rows(request, _) => Some(request),
                Landing::Slot(_) => None,
            };
            (flight.table, request, flight.attempts, flight.owner, *peer, std::mem::discriminant(error))
        };
        let mut from = 0;
        while from < failed.len() {
            let group = key(self, &failed[from]);
            let end = from + failed[from..].iter().take_while(|one| key(self, one) == group).count();
            self.retry_group(now, &failed[from..end]);
            from = end;
        }
        failed.clear();
        self.failed = failed;
    }

    /// Has all that a peer was to give asked of the next one that has the same rows, where there is one: the peer is gone.
    fn leave(&mut self, peer: Rank) {
        for Lane { table, stats, .. } in &mut self.lanes {
            for (source, spares) in table.sources.iter_mut().zip(&mut table.spares) {
                spares.retain(|spare| spare.peer != peer);
                if let Source::Remote(region) = source
                    && region.peer == peer
                    && let Some(next) = spares.pop_front()
                {
                    *region = next;
                    stats.failovers += 1;
                }
            }
        }
    }

    fn retry_group(&mut self, now: Duration, group: &[(FlightId, Rank, TransferError)]) {
        let (first, peer, error) = &group[0];
        let flight = *self.flights.get(*first);
        // Another peer is asked from now on, for which this is the first try.
        let moved = self.region(flight.table as usize, flight.owner).peer != *peer;
        // An abort is no fault of these rows: another request's deadline may have caused it. A request has a deadline of its own; a prefetch has not,
        // so for it every try counts.
        let aborted = matches!((error, flight.landing), (TransferError::Aborted, Landing::Rows(..)));
        let hopeless = matches!(
            error,
            TransferError::OutOfRegion { .. } | TransferError::StaleRegion { .. } | TransferError::Protocol(_)
        );
        let attempts = if moved { 0 } else { flight.attempts + u8::from(!aborted) };
        let wanted = match flight.landing {
            Landing::Rows(request, _) => self.requests.get(request).is_some_and(|request| request.is_live()),
            Landing::Slot(_) => true,
        };
        if (hopeless && !moved) || attempts >= self.limits.attempts || !wanted {
            self.give_up(group);
            return;
        }
        let wait = if aborted || moved { Duration::ZERO } else { self.limits.backoff * (1 << (attempts - 1).min(16)) };
        self.lanes[flight.table as usize].stats.retried_rows += group.len() as u64;
        self.wanted.clear();
        for &(id, ..) in group {
            let flight = self.flights.get_mut(id);
            flight.attempts = attempts;
            self.wanted.push(Wanted { owner: flight.owner, row: flight.row, flight: id });
        }
        match flight.landing {
            Landing::Rows(request, _) => {
                self.enqueue(flight.table as usize, Area::Rows(request), Some(request), true, now + wait)
            }
            // Somebody may wait for a prefetched row; as demand it keeps its place in time.
            Landing::Slot(_) => {
                self.enqueue(flight.table as usize, Area::Slots(flight.table as usize), None, true, now + wait)
            }
        }
    }

    fn give_up(&mut self, group: &[(FlightId, Rank, TransferError)]) {
        let (first, peer, error) = &group[0];
        let (flight, last) = (*self.flights.get(*first), *self.flights.get(group[group.len() - 1].0));
        let table = self.lanes[flight.table as usize].table.id;
        let cause = || Error::Get {
            peer: *peer,
            table,
            partition: PartitionId(flight.owner),
            rows: flight.row..last.row + 1,
            source: error.clone(),
        };
        if let Landing::Rows(request, _) = flight.landing {
            self.fail(request, cause());
        }
        for &(id, ..) in group {
            match self.flights.get(id).landing {
                // Those who joined a prefetch that cannot be had ask for themselves.
                Landing::Slot(_) if matches!(error, TransferError::Aborted) => self.rehome(id),
                Landing::Slot(_) => {
                    while let Some((request, _)) = self.flights.pop_waiter(id) {
                        self.fail(request, cause());
                    }
                    self.rehome(id);
                }
                Landing::Rows(..) => self.rehome(id),
            }
        }
        self.enqueue_rehomed();
    }

    /// Ends a flight whose first asker is gone, or starts it anew for the next one who waits.
    fn rehome(&mut self, id: FlightId) {
        let flight = *self.flights.get(id);
        let table = flight.table as usize;
        while let Some((request, place)) = self.flights.pop_waiter(id) {
            if !self.requests.get(request).is_some_and(|request| request.is_live()) {
                continue;
            }
            if let Landing::Slot(slot) = flight.landing {
                self.abandon(table, slot);
            }
            let entry = self.flights.get_mut(id);
            entry.landing = Landing::Rows(request, place);
            entry.attempts = 0;
            self.rehomed.push((table, request, id));
            return;
        }
        if let Landing::Slot(slot) = flight.landing {
            self.abandon(table, slot);
        }
        match flight.admitted {
            Some(slot) if flight.fills => self.lanes[table].fill.give_back(flight.node, slot),
            Some(slot) => self.abandon(table, slot),
            None => {}
        }
        self.flights.remove(id);
    }

    /// Batches the flights that were rehomed, those of a request together.
    fn enqueue_rehomed(&mut self) {
        while !self.rehomed.is_empty() {
            let mut rehomed = std::mem::take(&mut self.rehomed);
            rehomed.sort_by_key(|&(table, request, _)| (table, request.index, request.generation));
            for group in rehomed.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
                let (table, request, _) = group[0];
                if !self.requests.get(request).is_some_and(|request| request.is_live()) {
                    group.iter().for_each(|&(_, _, id)| self.rehome(id));
                    continue;
                }
                self.wanted.clear();
                for &(_, _, id) in group {
                    let flight = self.flights.get(id);
                    self.wanted.push(Wanted { owner: flight.owner, row: flight.row, flight: id });
                }
                self.enqueue(table, Area::Rows(request), Some(request), true, Duration::ZERO);
            }
        }
    }

    fn abandon(&mut self, table: usize, slot: Slot) {
        if let Some(buffer) = &mut self.lanes[table].table.buffer {
            buffer.abandon(slot);
        }
    }

    /// Ends a request with an error, unless it has ended.
    pub(super) fn fail(&mut self, id: RequestId, error: Error) {
        let Some(request) = self.requests.get_mut(id).filter(|request| request.is_live()) else { return };
        request.outcome = Outcome::Failed(error);
        self.drop_queued(id);
    }

    /// Rows that are not posted yet need not be.
    fn drop_queued(&mut self, id: RequestId) {
        let mut at = 0;
        while at < self.demand.len() {
            let batch = self.demand[at];
            let entry = self.batches.get(batch);
            if entry.request != Some(id) || entry.state != BatchState::Queued {
                at += 1;
                continue;
            }
            self.demand.remove(at);
            let flights = self.batches.get(batch).flights.clone();
            self.batches.close(batch);
            for flight in flights {
                self.rehome(flight);
            }
        }
        self.enqueue_rehomed();
    }

    /// Nobody wants the request's rows any more; what is posted may end within `grace`.
    pub fn cancel(&mut self, now: Duration, id: RequestId, grace: Duration) {
        let Some(request) = self.requests.get_mut(id) else { return };
        if request.is_live() {
            request.outcome = Outcome::Cancelled;
        }
        request.deadline = request.deadline.min(now + grace);
        self.drop_queued(id);
    }

    /// Fails a request whose waiter has run out of patience, unless it has ended.
    pub fn expire(&mut self, now: Duration, id: RequestId) {
        let Some(request) = self.requests.get_mut(id) else { return };
        request.deadline = request.deadline.min(now);
        self.fail_late(id);
    }

    /// Whether a request can be collected.
    pub fn is_over(&self, id: RequestId) -> bool {
        self.requests.get(id).is_none_or(|request| request.is_over())
    }

    /// Ends a request that is over, or whose rows are given up for lost: its result, and whether its memory must be leaked.
    ///
    /// # Errors
    /// What the request failed with.
    pub fn collect(&mut self, id: RequestId) -> (Result<()>, bool) {
        if !self.is_over(id) {
            self.drop_queued(id);
        }
        let Some(request) = self.requests.get_mut(id) else { return (Err(Error::Closed), false) };
        request.used = false;
        let result = match std::mem::replace(&mut request.outcome, Outcome::Cancelled) {
            Outcome::Live if request.missing == 0 => Ok(()),
            Outcome::Failed(error) => Err(error),
            Outcome::Live | Outcome::Cancelled => Err(Error::Closed),
        };
        (result, request.leaked)
    }

    /// When [`handle_timeout`](Self::handle_timeout) or [`poll_transmit`](Self::poll_transmit) has something to do next, at the latest.
    pub fn poll_timeout(&self, now: Duration) -> Option<Duration> {
        let requests =
            self.requests.iter().filter(|(_, request)| !request.is_over()).map(|(_, request)| request.deadline);
        let posted = self.batches.posted().map(|(_, batch)| batch.posted_at + self.limits.transfer_timeout);
        // What is due and was not transmitted waits for a completion, a chunk or an unpinned slot, not for a moment.
        let delayed = self.demand.iter().map(|&batch| self.batches.get(batch).not_before).filter(|&at| at > now);
        requests.chain(posted).chain(delayed).chain(self.blocked_until).min()
    }

    /// Fails the requests that are late and appends the peers whose posted rows must be aborted, so that their memory is left alone.
    /// Returns whether a request failed.
    pub fn handle_timeout(&mut self, now: Duration, aborts: &mut Vec<Rank>) -> bool {
        let late = |pipeline: &Self| {
            let mut late =
                pipeline.requests.iter().filter(|(_, request)| request.deadline <= now && !request.is_over());
            late.find(|(_, request)| request.is_live()).map(|(id, _)| id)
        };
        let mut failed = false;
        while let Some(id) = late(self) {
            self.fail_late(id);
            failed = true;
        }
        let (known, silent) = (aborts.len(), |batch: &Batch| batch.posted_at + self.limits.transfer_timeout <= now);
        aborts.extend(self.batches.posted().filter(|(_, batch)| silent(batch)).map(|(_, batch)| batch.peer));
        // Who is given up for its silence is as good as gone.
        aborts[known..].iter().for_each(|&peer| self.leave(peer));
        for (_, batch) in self.batches.posted() {
            let unwanted = batch
                .request
                .and_then(|id| self.requests.get(id))
                .is_some_and(|request| !request.is_live() && request.deadline <= now);
            if unwanted {
                aborts.push(batch.peer);
            }
        }
        aborts.sort_unstable();
        aborts.dedup();
        failed
    }

    /// Ends every request and appends the peers that rows are posted to.
    pub fn close(&mut self, aborts: &mut Vec<Rank>) {
        self.closed = true;
        self.lanes.iter_mut().for_each(|lane| lane.fill = Fill::default());
        let open: Vec<RequestId> = self.requests.iter().map(|(id, _)| id).collect();
        for id in open {
            if !self.is_over(id) {
                self.fail(id, Error::Closed);
            }
        }
        aborts.extend(self.batches.posted().map(|(at, _)| self.peer(at)));
        aborts.sort_unstable();
        aborts.dedup();
    }

    fn fail_late(&mut self, id: RequestId) {
        let Some(request) = self.requests.get(id) else { return };
        let after = request.deadline - request.started;
        let Some(outstanding) = self.outstanding(request.deadline, id) else { return };
        let peer = outstanding.debts.first().map(|debt| debt.peer).unwrap_or_default();
        let (rows, missing, waits) = (outstanding.rows, outstanding.missing, outstanding.to_string());
        self.fail(id, Error::Deadline { rows, missing, peer, after, waits });
    }

    /// The rows posted to a peer will have no completion. Where the transport has fenced them their memory is free; where it could not, it
    /// is never used again.
    pub fn handle_lost(&mut self, peer: Rank, fenced: bool) {
        let lost: Vec<u32> = self.batches.posted().filter(|&(at, _)| self.peer(at) == peer).map(|(at, _)| at).collect();
        for at in lost {
            let batch = self.batches.get_mut(at);
            let (area, flights, open) = (batch.area, std::mem::take(&mut batch.flights), batch.open);
            self.lanes[batch.table].owners[batch.owner as usize].lose();
            // Closing forgets the name, so a late completion is ignored.
            self.batches.close(at);
            match area {
                Area::Rows(request) => {
                    if let Some(request) = self.requests.get_mut(request) {
                        request.exposed -= open;
                        request.leaked |= !fenced;
                    }
                }
                Area::Slots(_) => self.prefetch_rows -= open as usize,
                Area::Staging(chunk) if fenced => self.staging.push(chunk),
                Area::Staging(_) | Area::Offer(_) => {}
            }
            let flying: Vec<FlightId> =
                flights.into_iter().filter(|&flight| self.flights.get(flight).batch == at).collect();
            flying.into_iter().for_each(|flight| self.lose(flight, peer));
        }
        self.fill_where_idle();
    }

    fn lose(&mut self, id: FlightId, peer: Rank) {
        let flight = *self.flights.get(id);
        let table = self.lanes[flight.table as usize].table.id;
        let cause = || Error::Get {
            peer,
            table,
            partition: PartitionId(flight.owner),
            rows: flight.row..flight.row + 1,
            source: TransferError::Aborted,
        };
        if let Landing::Rows(request, _) = flight.landing {
            self.fail(request, cause());
        }
        while let Some((request, _)) = self.flights.pop_waiter(id) {
            self.fail(request, cause());
        }
        if let Some(slot) = flight.admitted {
            self.abandon(flight.table as usize, slot);
        }
        self.flights.remove(id);
    }
}
