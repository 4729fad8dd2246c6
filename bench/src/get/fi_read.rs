//! What libfabric gives by itself: one `fi_read` a row, some dozens at a time, over the provider that the transport has chosen.
//!
//! An endpoint of each side beside the transport's, by the same shim. The owner's has a thread that sleeps on it, since software providers
//! read only while the owner calls into the library.

use super::BATCH_TIMEOUT;
use super::floor::Floor;
use super::hex::{from_hex, to_hex};
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use rudder::memory::Memory;
use rudder_native::fabric as sys;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::BorrowedFd;
use rustix::io::Errno;
use std::ffi::{CStr, CString, c_int};
use std::ptr::{NonNull, null, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

/// Reads under way: more measured no faster over `tcp;ofi_rxm`.
const DEPTH: usize = 64;
const NAME_BYTES_MAX: usize = 256;
const NO_COMPLETION: sys::Completion = sys::Completion { context: null_mut(), bytes: 0, error: 0, provider_error: 0 };
/// The longest that the owner's thread sleeps, and so what its end may wait.
const SLEEP: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };

/// An endpoint in a domain of its own; closed by drop.
struct Port {
    library: *mut sys::Library,
    domain: NonNull<sys::Domain>,
    endpoint: NonNull<sys::Endpoint>,
}

// SAFETY: the domain is opened as FI_THREAD_SAFE: libfabric synchronises what threads do with it and with its endpoint.
unsafe impl Send for Port {}
// SAFETY: as above.
unsafe impl Sync for Port {}

impl Port {
    fn open(provider: &str) -> Result<Self> {
        let path = std::env::var("RUDDER_FABRIC_LIBRARY").unwrap_or_else(|_| "libfabric.so.1".into());
        let (path, name, source) = (CString::new(path)?, CString::new(provider)?, c"127.0.0.1");
        let (mut library, mut info, mut domain, mut endpoint) = (null_mut(), null_mut(), null_mut(), null_mut());
        let mut why = [0; 256];
        // SAFETY: strings end with 0, `why` is as long as said, and each call gets what the one before has made.
        unsafe {
            let loaded = sys::rf_load(path.as_ptr(), &mut library, why.as_mut_ptr(), why.len());
            ensure!(loaded == 0, "cannot load libfabric: {}", CStr::from_ptr(why.as_ptr()).to_string_lossy());
            check(library, sys::rf_find(library, name.as_ptr(), null(), source.as_ptr(), 1, &mut info))?;
            let mut limits = std::mem::MaybeUninit::<sys::Limits>::uninit();
            sys::rf_describe(info, limits.as_mut_ptr());
            if limits.assume_init().local_registration {
                sys::rf_free(library, info);
                bail!("{provider} asks for registration at both ends, which this floor leaves out");
            }
            check(library, sys::rf_domain_open(library, info, &mut domain))?;
            let domain = NonNull::new(domain).context("libfabric opened no domain")?;
            if let Err(error) = check(library, sys::rf_endpoint_open(domain.as_ptr(), DEPTH as u64, &mut endpoint)) {
                sys::rf_domain_close(domain.as_ptr());
                return Err(error);
            }
            let endpoint = NonNull::new(endpoint).context("libfabric opened no endpoint")?;
            Ok(Self { library, domain, endpoint })
        }
    }

    fn check(&self, code: c_int) -> Result<usize> {
        check(self.library, code)
    }

    fn poll(&self, space: &mut [sys::Completion]) -> Result<usize> {
        // SAFETY: the endpoint is open, and no more entries are filled than there are.
        self.check(unsafe { sys::rf_poll(self.endpoint.as_ptr(), space.as_mut_ptr(), space.len()) })
    }

    /// Sleeps until something comes, where the provider can say that it does.
    fn wait(&self) {
        // SAFETY: the endpoint is open.
        let (descriptor, busy) = unsafe {
            (sys::rf_endpoint_descriptor(self.endpoint.as_ptr()), sys::rf_endpoint_may_wait(self.endpoint.as_ptr()))
        };
        if descriptor < 0 || busy != 0 {
            return std::thread::yield_now();
        }
        // SAFETY: the descriptor is the endpoint's, which is open as long as this borrow.
        let descriptor = unsafe { BorrowedFd::borrow_raw(descriptor) };
        // A signal or an error only ends the sleep.
        let _ = poll(&mut [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)], Some(&SLEEP));
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        // SAFETY: both are open, and whoever shares them is gone; a refusal leaks them.
        unsafe {
            sys::rf_endpoint_close(self.endpoint.as_ptr());
            sys::rf_domain_close(self.domain.as_ptr());
        }
    }
}

/// A count, or libfabric's words for an error.
fn check(library: *const sys::Library, code: c_int) -> Result<usize> {
    usize::try_from(code).map_err(|_| {
        // SAFETY: the library is loaded, and answers any number with a static string.
        let words = unsafe { CStr::from_ptr(sys::rf_strerror(library, code)) };
        anyhow!("libfabric: {} ({code})", words.to_string_lossy())
    })
}

/// The owner's table, readable by anybody who knows its key; no more so after its drop.
pub(super) struct Offered {
    port: Arc<Port>,
    region: NonNull<sys::Region>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Offered {
    /// Offers memory to whoever learns its key.
    ///
    /// # Safety
    /// The memory outlives this, and nobody writes to it meanwhile.
    pub(super) unsafe fn new(provider: &str, memory: &Memory) -> Result<Self> {
        let port = Arc::new(Port::open(provider)?);
        let mut region = null_mut();
        // SAFETY: the domain and its endpoint are open; the memory outlives the region, by this function's contract.
        port.check(unsafe {
            let (domain, endpoint, base) = (port.domain.as_ptr(), port.endpoint.as_ptr(), memory.base().cast());
            sys::rf_register(domain, endpoint, base, memory.bytes(), sys::ACCESS_REMOTE_READ, 1, &mut region)
        })?;
        let region = NonNull::new(region).context("libfabric registered nothing")?;
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (port, stop) = (port.clone(), stop.clone());
            move || {
                while !stop.load(Ordering::Acquire) && port.poll(&mut [NO_COMPLETION; 16]).is_ok() {
                    port.wait();
                }
            }
        });
        Ok(Self { port, region, stop, thread: Some(thread) })
    }

    /// What an asker needs: endpoint, base and key.
    pub(super) fn say(&self) -> Result<String> {
        let mut name = [0u8; NAME_BYTES_MAX];
        let (mut name_bytes, mut key) = (name.len(), sys::Key { base: 0, bytes: 0, key: [0; sys::KEY_BYTES] });
        // SAFETY: endpoint and region are open; no more of the name is written than there is.
        unsafe {
            let endpoint = self.port.endpoint.as_ptr();
            self.port.check(sys::rf_endpoint_name(endpoint, name.as_mut_ptr().cast(), &mut name_bytes))?;
            self.port.check(sys::rf_region_key(self.region.as_ptr(), &mut key))?;
        }
        let key_bytes = key.key.get(..key.bytes as usize).context("a key is longer than keys are")?;
        Ok(format!("{} {} {}", to_hex(&name[..name_bytes]), key.base, to_hex(key_bytes)))
    }
}

impl Drop for Offered {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        // SAFETY: registered once, ended once, before the endpoint.
        unsafe { sys::rf_deregister(self.region.as_ptr()) };
    }
}

/// One `fi_read` a row.
pub(super) struct FiRead {
    /// `None` after an error: what is under way then ends with the endpoint.
    port: Option<Port>,
    address: u64,
    key: u64,
    base: u64,
    row_bytes: usize,
    contexts: Vec<sys::Context>,
    free: Vec<usize>,
}

impl FiRead {
    /// Reads what the owner has offered, by what it said of it.
    pub(super) fn new(provider: &str, said: &str, row_bytes: usize) -> Result<Self> {
        let [name, base, key_bytes] = said.split(' ').collect::<Vec<_>>()[..] else { bail!("the owner said {said:?}") };
        let (name, base, key_bytes) = (from_hex(name)?, base.parse()?, from_hex(key_bytes)?);
        let mut padded = [0u8; NAME_BYTES_MAX];
        padded.get_mut(..name.len()).context("an endpoint's name is too long")?.copy_from_slice(&name);
        let mut key = sys::Key { base, bytes: key_bytes.len() as u32, key: [0; sys::KEY_BYTES] };
        key.key.get_mut(..key_bytes.len()).context("a key is too long")?.copy_from_slice(&key_bytes);
        let port = Port::open(provider)?;
        let (mut address, mut imported) = (0, 0);
        // SAFETY: domain and endpoint are open; the name is padded to the longest that any provider reads.
        unsafe {
            port.check(sys::rf_endpoint_resolve(port.endpoint.as_ptr(), padded.as_ptr().cast(), &mut address))?;
            port.check(sys::rf_key_import(port.domain.as_ptr(), &key, &mut imported))?;
        }
        let (contexts, free) = (vec![sys::Context::default(); DEPTH], (0..DEPTH).collect());
        Ok(Self { port: Some(port), address, key: imported, base, row_bytes, contexts, free })
    }

    fn read(&mut self, rows: &[u64], landing: &Memory) -> Result<()> {
        let port = self.port.as_ref().context("an earlier read failed")?;
        let began = Instant::now();
        let (mut posted, mut ended) = (0, 0);
        let mut completions = [NO_COMPLETION; DEPTH];
        while ended < rows.len() {
            while let (Some(&row), Some(&slot)) = (rows.get(posted), self.free.last()) {
                let local = landing.base().wrapping_add(posted * self.row_bytes).cast();
                let remote = self.base + row * self.row_bytes as u64;
                let segment = sys::Segment { local, remote, bytes: self.row_bytes as u64 };
                let context = self.contexts.as_mut_ptr().wrapping_add(slot).cast();
                // SAFETY: the landing has a place for each row and is alive until all have ended or the endpoint is closed; the slot's
                // context is in nobody's use.
                let code = unsafe {
                    let (endpoint, address) = (port.endpoint.as_ptr(), self.address);
                    sys::rf_read(endpoint, &segment, 1, null_mut(), address, self.key, context, 0)
                };
                if code == -Errno::AGAIN.raw_os_error() {
                    break;
                }
                port.check(code)?;
                self.free.pop();
                posted += 1;
            }
            let count = port.poll(&mut completions)?;
            for completion in &completions[..count] {
                port.check(-completion.error)?;
                let offset = completion.context as usize - self.contexts.as_ptr() as usize;
                self.free.push(offset / size_of::<sys::Context>());
                ended += 1;
            }
            if count == 0 {
                ensure!(began.elapsed() < BATCH_TIMEOUT, "reads are not complete after {BATCH_TIMEOUT:?}");
                std::thread::yield_now();
            }
        }
        Ok(())
    }
}

impl Floor for FiRead {
    fn name(&self) -> &'static str {
        "fi_read"
    }

    fn gather(&mut self, rows: &[u64], landing: &Memory) -> Result<()> {
        self.read(rows, landing).inspect_err(|_| self.port = None)
    }
}
