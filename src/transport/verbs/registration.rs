//! Registered memory: what the device may read for peers, and what it may write for us.

use super::counters::{add, subtract};
use super::device::Device;
use super::ffi;
use crate::error::{Error, Result};
use crate::memory::{Access, Memory, Pages, PinCharge, Version, pin_charge};
use rustix::process::{Resource, getrlimit};
use std::collections::VecDeque;
use std::ffi::c_void;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Regions whose end is still told to readers that hold their tokens; a page and a registration each.
const RETIRED_MAX: usize = 4096;

/// A memory region of the device. Its holder keeps the memory alive longer.
struct Registered {
    device: Arc<Device>,
    region: *mut ffi::MemoryRegion,
    pinned: usize,
    /// `None` where the device has pages on demand. A drop comes to it after the deregistration.
    charge: Option<PinCharge>,
}

// SAFETY: a registration may be ended from any thread; nothing else is done through the pointer but reading its keys.
unsafe impl Send for Registered {}
// SAFETY: as above.
unsafe impl Sync for Registered {}

impl Registered {
    fn new(device: &Arc<Device>, memory: &Memory, access: Access) -> Result<Self> {
        let flags = match access {
            Access::Local => ffi::ACCESS_LOCAL_WRITE,
            Access::RemoteRead => ffi::ACCESS_REMOTE_READ,
        };
        // A file's pages come and go with the page cache: pinning them all would load the file, and many kernels refuse to.
        let (flags, pinned) = match (memory.is_writable(), device.pages_on_demand) {
            (true, _) => (flags, memory.bytes()),
            (false, true) if access == Access::RemoteRead => (flags | ffi::ACCESS_ON_DEMAND, 0),
            (false, _) => return Err(refused(device, memory.bytes(), FILE_REMEDY, io::ErrorKind::Unsupported.into())),
        };
        // An empty table is a region too, and no device registers nothing: our own memory has a page at least.
        let bytes = memory.bytes().max(1);
        let charge = (flags & ffi::ACCESS_ON_DEMAND == 0).then(|| pin_charge(pinned)).transpose()?;
        // SAFETY: the memory lives as long as the registration, by this type's contract; the device is open.
        let region = unsafe { (device.library.reg_mr)(device.domain, memory.base().cast::<c_void>(), bytes, flags) };
        if region.is_null() {
            let cause = io::Error::last_os_error();
            return Err(refused(device, memory.bytes(), LIMIT_REMEDY, cause));
        }
        add(&device.counters.registrations, 1);
        add(&device.counters.pinned_bytes, pinned);
        Ok(Self { device: Arc::clone(device), region, pinned, charge })
    }

    fn lkey(&self) -> u32 {
        // SAFETY: the region lives until the drop, and its keys never change.
        unsafe { (*self.region).lkey }
    }

    fn rkey(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.region).rkey }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        if !self.device.is_ours() {
            return;
        }
        // SAFETY: registered once, ended once.
        let errno = unsafe { (self.device.library.dereg_mr)(self.region) };
        if errno == 0 {
            subtract(&self.device.counters.pinned_bytes, self.pinned);
        } else {
            // The pages stay pinned, and so counted.
            std::mem::forget(self.charge.take());
            let cause = io::Error::from_raw_os_error(errno);
            tracing::warn!("transport verbs: {} does not end a registration: {cause}", self.device.name);
        }
    }
}

const FILE_REMEDY: &str = "the device reads pinned memory only, and a file's pages are not: copy the file into memory that \
    the transport allocates, use a device with on-demand paging, or use the tcp transport";
const LIMIT_REMEDY: &str = "raise RLIMIT_MEMLOCK (ulimit -l unlimited; under Slurm PropagateResourceLimits=MEMLOCK, under systemd \
    LimitMEMLOCK=infinity) or export less memory";

fn refused(device: &Device, bytes: usize, remedy: &'static str, cause: io::Error) -> Error {
    let limit = getrlimit(Resource::Memlock).current.map_or("unlimited".into(), |limit| format!("{limit} bytes"));
    let pinned = device.counters.read().pinned_bytes;
    let text = format!("{} says: {cause}; {pinned} bytes are pinned already, RLIMIT_MEMLOCK is {limit}", device.name);
    Error::Memory { operation: "register", bytes, remedy, source: io::Error::new(cause.kind(), text) }
}

/// What a reader must know of a region; travels in its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exported {
    pub address: u64,
    pub bytes: u64,
    pub rkey: u32,
    pub version_address: u64,
    pub version_rkey: u32,
}

/// Version words whose regions are gone. They stay registered, so that a late reader is told of the end instead of losing its
/// connection to a refused key.
#[derive(Default)]
pub struct Retired {
    words: Mutex<VecDeque<VersionWord>>,
}

/// A region's version, readable by peers. The order of the fields is that of their ends.
struct VersionWord {
    registered: Registered,
    version: Version,
}

/// A region that peers may read; the drop tells readers of its end first.
pub struct Export {
    rows: Option<Registered>,
    word: Option<VersionWord>,
    retired: Arc<Retired>,
    exported: Exported,
}

impl Export {
    pub fn new(device: &Arc<Device>, memory: &Memory, retired: &Arc<Retired>) -> Result<(Self, Version)> {
        let version = Version::new()?;
        let rows = Registered::new(device, memory, Access::RemoteRead)?;
        let word = VersionWord {
            registered: Registered::new(device, version.page(), Access::RemoteRead)?,
            version: version.clone(),
        };
        let exported = Exported {
            address: memory.base() as u64,
            bytes: memory.bytes() as u64,
            rkey: rows.rkey(),
            version_address: version.page().base() as u64,
            version_rkey: word.registered.rkey(),
        };
        Ok((Self { rows: Some(rows), word: Some(word), retired: Arc::clone(retired), exported }, version))
    }

    pub fn exported(&self) -> &Exported {
        &self.exported
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        let Some(word) = self.word.take() else { return };
        if !word.registered.device.is_ours() {
            // The page is shared with the parent: to retire it here would end the parent's region.
            return;
        }
        word.version.set(Version::RETIRED);
        drop(self.rows.take());
        let mut words = self.retired.words.lock().unwrap_or_else(PoisonError::into_inner);
        words.push_back(word);
        let oldest = (words.len() > RETIRED_MAX).then(|| words.pop_front());
        drop(words);
        drop(oldest);
    }
}

/// Memory that gets may land in, and the key under which the device writes there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Landing {
    first: usize,
    end: usize,
    lkey: u32,
}

/// The regions of this rank that gets may land in. Channels keep a copy, and ask again only when a region came or went.
#[derive(Default)]
pub struct Landings {
    generation: AtomicU64,
    sorted: RwLock<Arc<[Landing]>>,
}

impl Landings {
    fn change(&self, change: impl FnOnce(&mut Vec<Landing>)) {
        let mut sorted = self.sorted.write().unwrap_or_else(PoisonError::into_inner);
        let mut next = sorted.to_vec();
        change(&mut next);
        next.sort_unstable_by_key(|landing| landing.first);
        *sorted = next.into();
        self.generation.fetch_add(1, Ordering::Release);
    }
}

/// A channel's copy of the table.
#[derive(Default)]
pub struct KnownLandings {
    generation: u64,
    sorted: Arc<[Landing]>,
}

impl KnownLandings {
    /// The key of the region that holds all these bytes.
    pub fn key_of(&mut self, landings: &Landings, first: usize, bytes: usize) -> Option<u32> {
        let generation = landings.generation.load(Ordering::Acquire);
        if generation != self.generation {
            self.sorted = landings.sorted.read().unwrap_or_else(PoisonError::into_inner).clone();
            self.generation = generation;
        }
        let at = self.sorted.partition_point(|landing| landing.first <= first).checked_sub(1)?;
        let landing = self.sorted[at];
        (first.checked_add(bytes)? <= landing.end).then_some(landing.lkey)
    }
}

/// A region that gets may land in; its entry in the table goes before the registration.
pub struct LocalRegion {
    landings: Arc<Landings>,
    landing: Landing,
    registered: Registered,
}

impl LocalRegion {
    pub fn new(device: &Arc<Device>, memory: &Memory, landings: &Arc<Landings>) -> Result<Self> {
        let registered = Registered::new(device, memory, Access::Local)?;
        let first = memory.base() as usize;
        let landing = Landing { first, end: first + memory.bytes(), lkey: registered.lkey() };
        landings.change(|all| all.push(landing));
        Ok(Self { landings: Arc::clone(landings), landing, registered })
    }
}

impl Drop for LocalRegion {
    fn drop(&mut self) {
        if self.registered.device.is_ours() {
            self.landings.change(|all| all.retain(|landing| *landing != self.landing));
        }
    }
}

/// Where versions of peers' regions land, beside the rows that were read with them.
pub struct Words {
    // Ended before the memory is freed.
    registered: Registered,
    memory: Memory,
}

impl Words {
    pub fn new(device: &Arc<Device>, words: usize) -> Result<Self> {
        let memory = Memory::allocate_with(words * 8, Pages { huge: false, locked: false })?;
        Ok(Self { registered: Registered::new(device, &memory, Access::Local)?, memory })
    }

    pub fn lkey(&self) -> u32 {
        self.registered.lkey()
    }

    pub fn address(&self, at: usize) -> u64 {
        self.memory.base() as u64 + 8 * at as u64
    }

    /// What the device has written to a word.
    pub fn get(&self, at: usize) -> u64 {
        assert!((at + 1) * 8 <= self.memory.bytes(), "words are numbered from 0");
        // SAFETY: within the memory and aligned; the device writes it behind the compiler's back, hence the volatile read.
        unsafe { self.memory.base().cast::<u64>().add(at).read_volatile() }
    }
}

#[cfg(test)]
mod tests {
    //! Goal: a destination gets the key of the region that holds all of it, or none, and never that of a region that is gone.

    use super::*;

    #[test]
    fn destinations_are_found_by_address() {
        let landings = Landings::default();
        let mut known = KnownLandings::default();
        assert_eq!(known.key_of(&landings, 100, 1), None);
        let low = Landing { first: 100, end: 200, lkey: 1 };
        let high = Landing { first: 200, end: 300, lkey: 2 };
        landings.change(|all| all.extend([high, low]));
        let mut key = |first, bytes| known.key_of(&landings, first, bytes);
        assert_eq!([key(100, 100), key(199, 1), key(200, 1), key(250, 50)], [Some(1), Some(1), Some(2), Some(2)]);
        assert_eq!([key(99, 1), key(199, 2), key(300, 1), key(usize::MAX, 2)], [None; 4]);
        landings.change(|all| all.retain(|landing| *landing != low));
        assert_eq!([known.key_of(&landings, 100, 1), known.key_of(&landings, 200, 1)], [None, Some(2)]);
    }
}
