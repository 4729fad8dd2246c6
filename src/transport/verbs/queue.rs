//! Queue pairs and completion queues.
//!
//! A queue pair that reads has a completion queue of its own: all that it has posted fits in there, errors included, so that no
//! queue can overflow, and an abort finds nothing of other peers in its way.

use super::device::Device;
use super::failure;
use super::ffi::{self, WorkCompletion};
use super::wire::Offer;
use crate::error::Result;
use rustix::fd::BorrowedFd;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use std::ffi::c_int;
use std::io;
use std::sync::Arc;

/// The wait for an acknowledgement, as a power of two of 4.096 us: 268 ms. Devices may wait up to four times as long.
const TIMEOUT_CODE: u8 = 16;
/// Tries after the first. Seven would mean, on some devices, without end.
const RETRIES: u8 = 6;
/// Tries while the peer's device is not ready, which for reads it always is.
const NOT_READY_RETRIES: u8 = 6;
const HOPS_MAX: u8 = 64;

/// A descriptor that is readable when one of its completion queues has news.
pub struct EventChannel {
    device: Arc<Device>,
    raw: *mut ffi::CompletionChannel,
}

// SAFETY: verbs objects may be used from any thread; the pointer lives until the drop.
unsafe impl Send for EventChannel {}
// SAFETY: as above.
unsafe impl Sync for EventChannel {}

impl EventChannel {
    pub fn new(device: &Arc<Device>) -> Result<Arc<Self>> {
        // SAFETY: the context is open.
        let raw = unsafe { (device.library.create_comp_channel)(device.context) };
        if raw.is_null() {
            return Err(failure(format!("no completion channel: {}", io::Error::last_os_error())));
        }
        let channel = Self { device: Arc::clone(device), raw };
        fcntl_getfl(channel.fd())
            .and_then(|flags| fcntl_setfl(channel.fd(), flags | OFlags::NONBLOCK))
            .map_err(|e| failure(format!("a completion channel that blocks: {e}")))?;
        Ok(Arc::new(channel))
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel owns the descriptor and lives as long as the borrow.
        unsafe { BorrowedFd::borrow_raw((*self.raw).fd) }
    }

    /// Takes the events that are there; to learn of the next, queues are [armed](CompletionQueue::arm) again.
    pub fn drain(&self) {
        let (mut queue, mut context) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the descriptor does not block, so the call ends; each event is acknowledged to its own queue, which lives, because
        // the thread that gets the events is the one that destroys the queues.
        unsafe {
            while (self.device.library.get_cq_event)(self.raw, &mut queue, &mut context) == 0 {
                (self.device.library.ack_cq_events)(queue, 1);
            }
        }
    }
}

impl Drop for EventChannel {
    fn drop(&mut self) {
        if self.device.is_ours() {
            // SAFETY: its completion queues hold it, so there are none left.
            unsafe { (self.device.library.destroy_comp_channel)(self.raw) };
        }
    }
}

/// A queue of completions.
pub struct CompletionQueue {
    device: Arc<Device>,
    raw: *mut ffi::CompletionQueue,
    #[expect(dead_code, reason = "held for its Drop, which must come after the queue's")]
    events: Option<Arc<EventChannel>>,
}

// SAFETY: verbs objects may be used from any thread; the pointer lives until the drop.
unsafe impl Send for CompletionQueue {}
// SAFETY: as above; polling is up to the one owner of the queue pair.
unsafe impl Sync for CompletionQueue {}

impl CompletionQueue {
    pub fn new(device: &Arc<Device>, entries: usize, events: Option<&Arc<EventChannel>>) -> Result<Arc<Self>> {
        let entries_max = device.limits.completions;
        let wanted = c_int::try_from(entries.clamp(1, entries_max.max(1))).unwrap_or(c_int::MAX);
        let channel = events.map_or(std::ptr::null_mut(), |events| events.raw);
        // SAFETY: the context is open, the channel null or alive.
        let raw = unsafe { (device.library.create_cq)(device.context, wanted, std::ptr::null_mut(), channel, 0) };
        if raw.is_null() {
            let cause = io::Error::last_os_error();
            return Err(failure(format!(
                "no completion queue of {wanted} entries (the device's most is {entries_max}): {cause}"
            )));
        }
        Ok(Arc::new(Self { device: Arc::clone(device), raw, events: events.cloned() }))
    }

    /// Asks for an event with the next completion. What has completed before makes none: poll once more after this.
    pub fn arm(&self) -> io::Result<()> {
        // SAFETY: the queue lives.
        unsafe { ffi::request_event(self.raw) }.map_err(io::Error::from_raw_os_error)
    }

    /// Takes completions that are there.
    pub fn poll<'a>(&self, into: &'a mut [WorkCompletion]) -> io::Result<&'a [WorkCompletion]> {
        // SAFETY: the queue lives, and only the owner of its queue pair polls.
        let found = unsafe { ffi::poll_cq(self.raw, into) };
        found.map(|found| &into[..found]).map_err(|()| io::Error::other("the device lost the completion queue"))
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        if self.device.is_ours() {
            // SAFETY: its queue pairs hold it, so there are none left, and every event was acknowledged.
            unsafe { (self.device.library.destroy_cq)(self.raw) };
        }
    }
}

/// What a queue pair is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Reads from a peer, at most so many requests at once; the peer may do nothing.
    Reads { requests: u32 },
    /// Is read from by a peer.
    Serves,
}

/// A list that was not taken whole.
pub struct Refusal {
    /// Its requests that were.
    pub posted: usize,
    pub cause: io::Error,
}

/// A reliable connection's end.
pub struct QueuePair {
    pub completions: Arc<CompletionQueue>,
    raw: *mut ffi::QueuePair,
    role: Role,
    packet: u32,
}

// SAFETY: verbs objects may be used from any thread; the pointer lives until the drop.
unsafe impl Send for QueuePair {}

impl QueuePair {
    /// A queue pair that is not yet connected.
    pub fn new(completions: &Arc<CompletionQueue>, role: Role) -> Result<Self> {
        let device = &completions.device;
        let max_send_wr = if let Role::Reads { requests } = role { requests } else { 1 };
        let mut init = ffi::QueuePairInit {
            qp_context: std::ptr::null_mut(),
            send_cq: completions.raw,
            recv_cq: completions.raw,
            srq: std::ptr::null_mut(),
            cap: ffi::QueuePairCap {
                max_send_wr,
                max_recv_wr: 1,
                max_send_sge: 1,
                max_recv_sge: 1,
                max_inline_data: 0,
            },
            qp_type: ffi::QPT_RC,
            sq_sig_all: 0,
        };
        let mut packet = [0; 4];
        getrandom::fill(&mut packet).map_err(|e| failure(format!("no random bytes: {e}")))?;
        // SAFETY: the domain and the queue live; the library copies what it needs.
        let raw = unsafe { (device.library.create_qp)(device.domain, &mut init) };
        if raw.is_null() {
            let (cause, most) = (io::Error::last_os_error(), device.limits.queue_pairs);
            return Err(failure(format!("no queue pair on {} (its most is {most}): {cause}", device.name)));
        }
        let packet = u32::from_le_bytes(packet) & 0xff_ffff;
        let queue = Self { completions: Arc::clone(completions), raw, role, packet };
        queue.initialise().map_err(|e| failure(format!("a new queue pair on {}: {e}", device.name)))?;
        Ok(queue)
    }

    fn device(&self) -> &Arc<Device> {
        &self.completions.device
    }

    fn modify(&self, mut attr: ffi::QueuePairAttr, mask: c_int) -> io::Result<()> {
        // SAFETY: the queue pair lives; the attributes are complete for the mask.
        match unsafe { (self.device().library.modify_qp)(self.raw, &mut attr, mask) } {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    fn initialise(&self) -> io::Result<()> {
        let mut attr = attributes(ffi::QPS_INIT);
        attr.port_num = self.device().port;
        attr.qp_access_flags = if self.role == Role::Serves { ffi::ACCESS_REMOTE_READ as u32 } else { 0 };
        self.modify(attr, ffi::QP_STATE | ffi::QP_PKEY_INDEX | ffi::QP_PORT | ffi::QP_ACCESS_FLAGS)
    }

    /// This end, for the other.
    pub fn offer(&self) -> Offer {
        let device = self.device();
        Offer {
            // SAFETY: the queue pair lives, and its number never changes.
            queue_pair: unsafe { (*self.raw).number },
            packet: self.packet,
            address: device.address,
            mtu: device.mtu,
            reads_out: device.limits.reads_out,
            reads_in: device.limits.reads_in,
        }
    }

    /// Connects to the other end: both promise each other no more reads at once than either can do.
    pub fn connect(&self, peer: &Offer) -> io::Result<()> {
        let device = self.device();
        let mut attr = attributes(ffi::QPS_RTR);
        attr.path_mtu = peer.mtu.min(device.mtu).into();
        attr.dest_qp_num = peer.queue_pair;
        attr.rq_psn = peer.packet;
        attr.max_dest_rd_atomic =
            if self.role == Role::Serves { peer.reads_out.min(device.limits.reads_in) } else { 1 };
        attr.min_rnr_timer = 12;
        attr.ah_attr.dgid = peer.address.gid;
        attr.ah_attr.sgid_index = device.gid_index;
        attr.ah_attr.hop_limit = HOPS_MAX;
        attr.ah_attr.is_global = device.global_route.into();
        attr.ah_attr.dlid = peer.address.lid;
        attr.ah_attr.port_num = device.port;
        let receiving = ffi::QP_AV
            | ffi::QP_PATH_MTU
            | ffi::QP_DEST_QPN
            | ffi::QP_RQ_PSN
            | ffi::QP_MAX_DEST_RD_ATOMIC
            | ffi::QP_MIN_RNR_TIMER;
        self.modify(attr, ffi::QP_STATE | receiving)?;
        if self.role == Role::Serves {
            // An end that only answers never sends requests of its own.
            return Ok(());
        }
        let mut attr = attributes(ffi::QPS_RTS);
        attr.timeout = TIMEOUT_CODE;
        attr.retry_cnt = RETRIES;
        attr.rnr_retry = NOT_READY_RETRIES;
        attr.sq_psn = self.packet;
        attr.max_rd_atomic = device.limits.reads_out.min(peer.reads_in);
        let sending =
            ffi::QP_TIMEOUT | ffi::QP_RETRY_CNT | ffi::QP_RNR_RETRY | ffi::QP_SQ_PSN | ffi::QP_MAX_QP_RD_ATOMIC;
        self.modify(attr, ffi::QP_STATE | sending)
    }

    /// Stops the queue pair: what is posted is flushed, each request with a completion of its own.
    pub fn stop(&self) -> io::Result<()> {
        self.modify(attributes(ffi::QPS_ERR), ffi::QP_STATE)
    }

    /// Posts a list.
    ///
    /// # Errors
    /// The device takes only the first of its requests, or none.
    ///
    /// # Safety
    /// Each destination is valid for writes and touched by nobody else until its completion, or until the queue pair is gone.
    pub unsafe fn post(&self, list: &mut RequestList) -> Result<(), Refusal> {
        let first = list.link();
        // SAFETY: the queue pair lives, the list is linked, and its destinations are the caller's promise.
        unsafe { ffi::post_send(self.raw, first) }.map_err(|(errno, bad)| {
            let refused = |request: &ffi::SendRequest| std::ptr::eq(request, bad);
            // A device that names no request may have taken any.
            let posted = list.requests.iter().position(refused).unwrap_or(list.requests.len());
            Refusal { posted, cause: io::Error::from_raw_os_error(errno) }
        })
    }

    /// Destroys the queue pair; afterwards the device touches nothing of what was posted.
    ///
    /// # Errors
    /// The device refuses, and the queue pair is leaked.
    pub fn destroy(self) -> io::Result<()> {
        let queue = std::mem::ManuallyDrop::new(self);
        let ended = queue.end();
        // SAFETY: the value is not used any more, so its one reference to the completion queue may be taken out.
        let completions = unsafe { std::ptr::read(&queue.completions) };
        if ended.is_err() {
            // The queue pair that could not be destroyed still refers to it.
            std::mem::forget(completions);
        }
        ended
    }

    fn end(&self) -> io::Result<()> {
        if !self.device().is_ours() {
            return Ok(());
        }
        // SAFETY: created once, destroyed once: `destroy` consumes the value and forgets the drop.
        match unsafe { (self.device().library.destroy_qp)(self.raw) } {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        if let Err(cause) = self.end() {
            tracing::warn!("transport verbs: {} does not end a queue pair: {cause}", self.device().name);
        }
    }
}

fn attributes(state: c_int) -> ffi::QueuePairAttr {
    // SAFETY: integers, for which zero is a value; the mask of `modify` says which are looked at.
    let mut attr: ffi::QueuePairAttr = unsafe { std::mem::zeroed() };
    attr.qp_state = state;
    attr
}

/// Where one read takes its bytes from and puts them.
#[derive(Clone, Copy, Debug)]
pub struct Read {
    pub remote: u64,
    pub rkey: u32,
    pub local: u64,
    pub lkey: u32,
    pub bytes: u32,
}

/// Reads that go out with one ring of the doorbell, the last of them signalled. Its memory is reused from list to list.
pub struct RequestList {
    requests: Vec<ffi::SendRequest>,
    gathers: Vec<ffi::Gather>,
}

// SAFETY: the pointers within are made anew by `link`, right before they are used.
unsafe impl Send for RequestList {}

impl RequestList {
    pub fn with_capacity(requests: usize) -> Self {
        Self { requests: Vec::with_capacity(requests), gathers: Vec::with_capacity(requests) }
    }

    pub fn clear(&mut self) {
        self.requests.clear();
        self.gathers.clear();
    }

    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Appends a read, under its number among all of the queue pair.
    pub fn push(&mut self, number: u64, read: &Read) {
        // SAFETY: integers and pointers, for which zero is a value.
        let mut request: ffi::SendRequest = unsafe { std::mem::zeroed() };
        request.wr_id = number;
        request.num_sge = 1;
        request.opcode = ffi::WR_RDMA_READ;
        request.remote_addr = read.remote;
        request.rkey = read.rkey;
        self.requests.push(request);
        self.gathers.push(ffi::Gather { address: read.local, length: read.bytes, lkey: read.lkey });
    }

    /// Sets the pointers and signals the last; the head of the list, null where it is empty.
    fn link(&mut self) -> *mut ffi::SendRequest {
        let mut next: *mut ffi::SendRequest = std::ptr::null_mut();
        for (request, gather) in self.requests.iter_mut().zip(&mut self.gathers).rev() {
            request.send_flags = if next.is_null() { ffi::SEND_SIGNALED } else { 0 };
            request.next = next;
            request.sg_list = gather;
            next = request;
        }
        next
    }
}
