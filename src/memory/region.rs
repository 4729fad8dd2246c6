//! Registered memory.

use super::{Memory, Version};
use std::any::Any;
use std::sync::Arc;

/// Memory that a transport has registered. Dropping it deregisters first and frees the bytes after.
pub struct Region {
    // Field order is load-bearing: what deregisters is dropped before the bytes are freed.
    #[expect(dead_code, reason = "held for its Drop")]
    registration: Box<dyn Any + Send + Sync>,
    memory: Arc<Memory>,
    token: Vec<u8>,
    version: Option<Version>,
}

impl Region {
    /// A region whose `registration` ends with its drop; for transports.
    pub(crate) fn new(registration: Box<dyn Any + Send + Sync>, memory: Arc<Memory>, token: Vec<u8>) -> Self {
        Self { registration, memory, token, version: None }
    }

    /// Gives an exported region the version that its transport compares readers' versions with.
    pub(crate) fn with_version(mut self, version: Version) -> Self {
        self.version = Some(version);
        self
    }

    /// The bytes.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// The serialised address and keys that [`Transport::import`](crate::transport::Transport::import) takes at the peers; empty
    /// where the access is [`Access::Local`](super::Access::Local).
    pub fn token(&self) -> &[u8] {
        &self.token
    }

    /// The version that gets must name; `None` where peers cannot reach the region. New regions have version 0.
    pub fn version(&self) -> Option<&Version> {
        self.version.as_ref()
    }
}

impl std::fmt::Debug for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Region").field("memory", &self.memory).finish_non_exhaustive()
    }
}
