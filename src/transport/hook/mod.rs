//! Transports around transports: they change what a channel shows of itself and leave its bytes alone.

mod faulty;
mod link;
mod throttled;

pub use faulty::{FaultConfig, Faulty};
pub use link::Link;
pub use throttled::Throttled;

/// Hands the methods that a hook does not change to the transport within it.
macro_rules! pass_through {
    () => {
        fn name(&self) -> &'static str {
            self.inner.name()
        }

        fn capabilities(&self) -> Capabilities {
            self.inner.capabilities()
        }

        fn address(&self) -> Vec<u8> {
            self.inner.address()
        }

        fn connect(&self, addresses: &[Vec<u8>]) -> Result<()> {
            self.inner.connect(addresses)
        }

        fn allocate(&self, bytes: usize, access: Access) -> Result<Region> {
            self.inner.allocate(bytes, access)
        }

        unsafe fn register(&self, memory: Memory, access: Access) -> Result<Region> {
            // SAFETY: the caller promises to this transport what the inner one asks.
            unsafe { self.inner.register(memory, access) }
        }

        fn import(&self, peer: Rank, token: &[u8]) -> Result<RemoteRegion> {
            self.inner.import(peer, token)
        }
    };
}
use pass_through;
