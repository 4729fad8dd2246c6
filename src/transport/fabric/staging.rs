//! Buffers of our own for messages and for words that are read, registered where the provider asks for it.

use super::library::{Context, Descriptor, Endpoint, Registered, Use};
use super::shared::Shared;
use crate::error::Result;
use crate::memory::{Memory, Pages};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Memory for messages. The registration is dropped before the bytes are freed.
pub(super) struct Staging {
    registered: Option<Registered>,
    memory: Arc<Memory>,
}

impl Staging {
    pub(super) fn new(bytes: usize) -> Result<Self> {
        let memory = Memory::allocate_with(bytes, Pages { huge: false, locked: false })?;
        Ok(Self { registered: None, memory: Arc::new(memory) })
    }

    /// Makes the memory usable by an endpoint's operations.
    pub(super) fn register(&mut self, shared: &Shared, endpoint: &Arc<Endpoint>) -> Result<()> {
        if shared.domain.limits().local_registration {
            let (base, bytes, key) = (self.memory.base(), self.memory.bytes(), shared.next_key());
            // SAFETY: the registration lies beside the memory and is dropped first.
            self.registered = Some(unsafe { Registered::new(endpoint, base, bytes, Use::Staging, key) }?);
            shared.counters.registrations.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Takes the memory back from an endpoint that is about to close.
    pub(super) fn deregister(&mut self) {
        self.registered = None;
    }

    /// The bytes and their registration, for who must keep them beyond this.
    pub(super) fn take(&mut self) -> (Option<Registered>, Arc<Memory>) {
        (self.registered.take(), Arc::clone(&self.memory))
    }

    pub(super) fn descriptor(&self) -> Descriptor {
        self.registered.as_ref().map_or(Descriptor::NONE, Registered::descriptor)
    }

    /// The first byte of a buffer that begins `at` bytes into the memory.
    pub(super) fn at(&self, at: usize) -> *mut u8 {
        debug_assert!(at < self.memory.bytes());
        self.memory.base().wrapping_add(at)
    }
}

/// Contexts that operations lend to the provider, one for each thing that can be under way.
pub(super) struct Contexts {
    contexts: Vec<Context>,
}

impl Contexts {
    pub(super) fn new(count: usize) -> Self {
        Self { contexts: vec![Context::default(); count] }
    }

    /// The context of an operation, by its number.
    pub(super) fn at(&mut self, number: usize) -> *mut Context {
        assert!(number < self.contexts.len(), "operation {number} has no context");
        self.contexts.as_mut_ptr().wrapping_add(number)
    }

    /// Which operation a completion speaks of; None where it is none of ours.
    pub(super) fn number(&self, context: *mut std::ffi::c_void) -> Option<usize> {
        let offset = (context as usize).checked_sub(self.contexts.as_ptr() as usize)?;
        let number = offset / size_of::<Context>();
        (offset % size_of::<Context>() == 0 && number < self.contexts.len()).then_some(number)
    }
}
