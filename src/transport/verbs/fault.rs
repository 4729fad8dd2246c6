//! Errors of the device, in plain words.

use super::ffi;
use crate::error::TransferError;
use std::ffi::c_int;

/// The first error of a queue pair, which is its last: everything behind is flushed.
pub struct Fault {
    pub status: i32,
    pub vendor: u32,
    /// The number of the request.
    pub request: u64,
}

impl Fault {
    /// Whether the peer's device refused a key or a range.
    pub fn is_refused_access(&self) -> bool {
        self.status == ffi::STATUS_REMOTE_ACCESS
    }

    fn words(&self) -> String {
        let (name, meaning) = status_words(self.status);
        format!("{name} (status {}, vendor's code {:#x}): {meaning}", self.status, self.vendor)
    }

    /// How it reads for the list that it hit, and for those behind it.
    pub fn error(&self, hit: bool) -> TransferError {
        match (self.status, hit) {
            (ffi::STATUS_RETRY_EXCEEDED, _) => TransferError::PeerGone(self.words()),
            (_, true) => TransferError::Io(self.words()),
            (_, false) => {
                TransferError::Io(format!("flushed, because an earlier read ended the connection: {}", self.words()))
            }
        }
    }
}

/// A status of a work completion (`ibv_wc_status`), by its name in InfiniBand's words and what it means here.
fn status_words(status: c_int) -> (&'static str, &'static str) {
    match status {
        1 => ("local length error", "a row is longer than its destination or than the device's largest message"),
        2 => ("local queue pair operation error", "the device cannot carry out the request"),
        4 => ("local protection error", "the destination is not registered for writing by the device"),
        5 => ("work request flushed", "an earlier error stopped the connection"),
        7 => ("bad response", "the peer's device answered what was not asked"),
        8 => ("local access error", "the destination does not allow writing by the device"),
        9 => ("remote invalid request", "the peer's device does not allow reads on this connection"),
        10 => (
            "remote access error",
            "the peer's device refuses the key or the range: the region is gone, or the rows lie outside it",
        ),
        11 => ("remote operation error", "the peer's device failed at the read"),
        12 => (
            "transport retry counter exceeded",
            "the peer does not answer: its process or host died, or the network between is down",
        ),
        13 => ("receiver-not-ready retry counter exceeded", "the peer's device is not ready"),
        16 => ("remote aborted", "the peer's device stopped the operation"),
        19 => ("fatal error", "the device failed"),
        20 => ("response timeout", "the peer's device did not answer in time"),
        _ => ("error", "the device gives no better word"),
    }
}

#[cfg(test)]
mod tests {
    //! Goal: a fault names its cause, for the list that it hit and for those behind it.

    use super::*;

    #[test]
    fn faults_name_their_cause() {
        let fault = |status| Fault { status, vendor: 0, request: 7 };
        let silent = fault(ffi::STATUS_RETRY_EXCEEDED);
        assert!(matches!(silent.error(true), TransferError::PeerGone(words) if words.contains("does not answer")));
        let refused = fault(ffi::STATUS_REMOTE_ACCESS);
        let (hit, behind) = (refused.error(true).to_string(), refused.error(false).to_string());
        assert!(hit.contains("remote access error") && !hit.contains("flushed"), "{hit}");
        assert!(behind.contains("remote access error") && behind.contains("flushed"), "{behind}");
        assert!(fault(99).error(true).to_string().contains("status 99"));
    }
}
