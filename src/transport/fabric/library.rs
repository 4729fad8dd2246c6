//! libfabric behind owning handles: what is opened is closed by drop, in the order that libfabric wants.
//!
//! A forked child owns none of it: there, drops do nothing.

use super::{environment, failed};
use crate::error::{Error, Result, TransferError};
use crate::memory::{PinCharge, pin_charge};
use rudder_native::fabric as sys;
use rustix::fd::BorrowedFd;
use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr::{NonNull, null, null_mut};
use std::sync::{Arc, Mutex, PoisonError};

pub(super) use sys::{Completion, Context, Key, Limits, SEGMENTS_MAX, Segment};

/// Longest name of an endpoint; the longest of any provider is below it.
pub(super) const NAME_BYTES_MAX: usize = 256;

const DEFAULT_PATH: &str = "libfabric.so.1";

/// An error number of libfabric's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Code(pub c_int);

impl Code {
    /// The provider cannot take the operation now.
    pub(super) fn is_again(self) -> bool {
        self.0 == libc::EAGAIN
    }
}

fn check(returned: c_int) -> Result<(), Code> {
    if returned < 0 { Err(Code(-returned)) } else { Ok(()) }
}

/// libfabric, loaded; it stays so until the process ends.
pub(super) struct Library {
    raw: *const sys::Library,
}

// SAFETY: the table of functions is written once, by the load, and libfabric's functions may be called by any thread.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

impl Library {
    /// Loads the library of this path or, without one, the system's.
    pub(super) fn load(path: Option<&str>) -> Result<&'static Self> {
        static LOADED: Mutex<Vec<(String, &'static Library)>> = Mutex::new(Vec::new());
        let path = path.unwrap_or(DEFAULT_PATH);
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, library)) = loaded.iter().find(|(known, _)| known == path) {
            return Ok(library);
        }
        let library = Box::leak(Box::new(Self::open(path)?));
        loaded.push((path.into(), library));
        Ok(library)
    }

    fn open(path: &str) -> Result<Self> {
        environment::prepare()?;
        let c_path = c_string("the library's path", path)?;
        let (mut raw, mut why) = (null_mut(), [0 as c_char; 256]);
        // SAFETY: the path ends with 0, and the function fills no more of `why` than it is told, with a 0 at the end.
        let returned = unsafe { sys::rf_load(c_path.as_ptr(), &mut raw, why.as_mut_ptr(), why.len()) };
        if returned == 0 {
            return Ok(Self { raw });
        }
        let why = text(&why);
        Err(failed(format!(
            "cannot load libfabric from '{path}': {why}; install it (Debian: libfabric1, Slingshot: module load libfabric), or name it \
             in RUDDER_FABRIC_LIBRARY"
        )))
    }

    /// Major and minor version.
    pub(super) fn version(&self) -> (u32, u32) {
        // SAFETY: the library is loaded.
        let version = unsafe { sys::rf_version(self.raw) };
        (version >> 16, version & 0xFFFF)
    }

    /// What libfabric calls an error.
    pub(super) fn words(&self, code: Code) -> String {
        // SAFETY: the library is loaded, and answers any number with a static string.
        let words = unsafe { CStr::from_ptr(sys::rf_strerror(self.raw, code.0)) };
        format!("{} ({})", words.to_string_lossy(), code.0)
    }

    /// The first offer that fits; None where there is none.
    pub(super) fn find(&self, wanted: &Wanted<'_>) -> Result<Option<Offer<'_>>> {
        let provider = c_string("the provider's name", wanted.provider)?;
        let domain = wanted.domain.map(|domain| c_string("the domain's name", domain)).transpose()?;
        let source = wanted.source.map(|source| c_string("the interface", source)).transpose()?;
        let pointer = |string: &Option<CString>| string.as_ref().map_or(null(), |string| string.as_ptr());
        let mut info = null_mut();
        // SAFETY: every string ends with 0 or is null, where null is allowed.
        let returned = unsafe {
            let (domain, source) = (pointer(&domain), pointer(&source));
            sys::rf_find(self.raw, provider.as_ptr(), domain, source, wanted.reads.into(), &mut info)
        };
        match check(returned) {
            Ok(()) => Ok(NonNull::new(info).map(|info| Offer { library: self, info })),
            Err(Code(libc::ENODATA | libc::ENODEV | libc::EINVAL | libc::ENOSYS)) => Ok(None),
            Err(code) => Err(failed(format!("provider {}: {}", wanted.provider, self.words(code)))),
        }
    }
}

fn c_string(what: &str, text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::config(format!("{what} has a zero byte")))
}

/// A C string in a field of fixed size.
pub(super) fn text(bytes: &[c_char]) -> String {
    let bytes: Vec<u8> = bytes.iter().take_while(|&&byte| byte != 0).map(|&byte| byte as u8).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What is looked for.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) provider: &'a str,
    pub(super) domain: Option<&'a str>,
    /// The address of the interface to bind to.
    pub(super) source: Option<&'a str>,
    /// One-sided reads beside messages.
    pub(super) reads: bool,
}

/// A provider's offer, made by the library and freed by it.
pub(super) struct Offer<'a> {
    library: &'a Library,
    info: NonNull<sys::Info>,
}

impl Offer<'_> {
    pub(super) fn limits(&self) -> Limits {
        let mut limits = std::mem::MaybeUninit::uninit();
        // SAFETY: the info is the library's own; the function fills all fields.
        unsafe {
            sys::rf_describe(self.info.as_ptr(), limits.as_mut_ptr());
            limits.assume_init()
        }
    }
}

impl Drop for Offer<'_> {
    fn drop(&mut self) {
        // SAFETY: the info is the library's own and not used any more.
        unsafe { sys::rf_free(self.library.raw, self.info.as_ptr()) }
    }
}

/// One network interface, open.
pub(super) struct Domain {
    library: &'static Library,
    raw: NonNull<sys::Domain>,
    limits: Limits,
    process: u32,
}

// SAFETY: the domain is opened as FI_THREAD_SAFE: libfabric synchronises what threads do with it and with all that belongs to it.
unsafe impl Send for Domain {}
// SAFETY: as above.
unsafe impl Sync for Domain {}

impl Domain {
    pub(super) fn open(library: &'static Library, offer: Offer<'_>) -> Result<Arc<Self>> {
        let (limits, info) = (offer.limits(), offer.info);
        // The domain takes it over.
        std::mem::forget(offer);
        let mut raw = null_mut();
        // SAFETY: the info is the library's own and given away here.
        check(unsafe { sys::rf_domain_open(library.raw, info.as_ptr(), &mut raw) })
            .map_err(|code| failed(format!("cannot open domain {}: {}", text(&limits.domain), library.words(code))))?;
        let raw = NonNull::new(raw).ok_or_else(|| failed("libfabric opened no domain"))?;
        Ok(Arc::new(Self { library, raw, limits, process: std::process::id() }))
    }

    pub(super) fn library(&self) -> &'static Library {
        self.library
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(super) fn provider(&self) -> String {
        text(&self.limits.provider)
    }

    pub(super) fn name(&self) -> String {
        text(&self.limits.domain)
    }

    pub(super) fn words(&self, code: Code) -> String {
        self.library.words(code)
    }

    /// What an operation's error means for a transfer.
    pub(super) fn transfer_error(&self, what: &str, code: Code) -> TransferError {
        let words = format!("{what}: {}", self.words(code));
        match code.0 {
            libc::ECONNREFUSED
            | libc::ECONNRESET
            | libc::ECONNABORTED
            | libc::ENOTCONN
            | libc::EHOSTUNREACH
            | libc::EHOSTDOWN
            | libc::ENETUNREACH
            | libc::ENETDOWN
            | libc::ETIMEDOUT
            | libc::ESHUTDOWN
            | libc::EPIPE
            | libc::ENOENT
            | libc::EIO
            // What was under way over a connection that broke: nothing is cancelled by us.
            | libc::ECANCELED => TransferError::PeerGone(words),
            _ => TransferError::Io(words),
        }
    }

    /// Whether this process opened it, and did not inherit it by a fork.
    fn is_ours(&self) -> bool {
        std::process::id() == self.process
    }

    /// Turns a peer's key into the one that reads name.
    pub(super) fn import(&self, key: &Key) -> Result<u64, Code> {
        let mut imported = 0;
        // SAFETY: the domain is open, and a key of any content is refused or accepted, not trusted.
        check(unsafe { sys::rf_key_import(self.raw.as_ptr(), key, &mut imported) })?;
        Ok(imported)
    }

    /// Takes an imported key back.
    pub(super) fn release(&self, imported: u64) {
        if self.is_ours() {
            // SAFETY: the domain is open.
            unsafe { sys::rf_key_release(self.raw.as_ptr(), imported) }
        }
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        if !self.is_ours() {
            return;
        }
        // SAFETY: endpoints, regions and imports hold the domain, so that all of them are closed.
        if let Err(code) = check(unsafe { sys::rf_domain_close(self.raw.as_ptr()) }) {
            tracing::warn!("fabric: domain {} cannot be closed: {}", self.name(), self.words(code));
        }
    }
}

/// An endpoint with a completion queue and an address vector of its own.
pub(super) struct Endpoint {
    domain: Arc<Domain>,
    raw: NonNull<sys::Endpoint>,
}

// SAFETY: as the domain's.
unsafe impl Send for Endpoint {}
// SAFETY: as above.
unsafe impl Sync for Endpoint {}

impl Endpoint {
    pub(super) fn open(domain: &Arc<Domain>, completions: usize) -> Result<Self> {
        let mut raw = null_mut();
        // SAFETY: the domain is open.
        check(unsafe { sys::rf_endpoint_open(domain.raw.as_ptr(), completions as u64, &mut raw) }).map_err(|code| {
            failed(format!(
                "cannot open an endpoint of {}: {}; where its queues are too large for the device, FI_UNIVERSE_SIZE=64 makes them smaller",
                domain.provider(),
                domain.words(code)
            ))
        })?;
        let raw = NonNull::new(raw).ok_or_else(|| failed("libfabric opened no endpoint"))?;
        Ok(Self { domain: Arc::clone(domain), raw })
    }

    pub(super) fn domain(&self) -> &Arc<Domain> {
        &self.domain
    }

    /// Closes it: where this succeeds, no buffer of its operations is touched any more.
    pub(super) fn close(self) -> Result<(), Code> {
        // Drop would close it again.
        let this = std::mem::ManuallyDrop::new(self);
        // SAFETY: the domain is moved out of what is never dropped; it must outlive the close.
        let domain = unsafe { std::ptr::read(&this.domain) };
        // SAFETY: the endpoint is open, and nobody else has it.
        let closed = check(unsafe { sys::rf_endpoint_close(this.raw.as_ptr()) });
        drop(domain);
        closed
    }

    /// What becomes readable when something completes; None where the provider has no such.
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the endpoint is open.
        let descriptor = unsafe { sys::rf_endpoint_descriptor(self.raw.as_ptr()) };
        // SAFETY: the descriptor belongs to the endpoint's queue, which is open as long as this borrow.
        (descriptor >= 0).then(|| unsafe { BorrowedFd::borrow_raw(descriptor) })
    }

    /// Whether waiting on the descriptor misses nothing that is there already.
    pub(super) fn may_wait(&self) -> bool {
        // SAFETY: the endpoint is open.
        unsafe { sys::rf_endpoint_may_wait(self.raw.as_ptr()) == 0 }
    }

    /// What peers reach it by.
    pub(super) fn name(&self) -> Result<Vec<u8>> {
        let mut name = vec![0; NAME_BYTES_MAX];
        let mut bytes = name.len();
        // SAFETY: the function writes no more than it is told.
        check(unsafe { sys::rf_endpoint_name(self.raw.as_ptr(), name.as_mut_ptr().cast(), &mut bytes) })
            .map_err(|code| failed(format!("an endpoint has no name: {}", self.domain.words(code))))?;
        name.truncate(bytes);
        Ok(name)
    }

    /// Makes a peer's endpoint addressable. The name comes from a peer that the bootstrap vouches for or that knows this rank's secret.
    pub(super) fn resolve(&self, name: &[u8]) -> Result<u64, Code> {
        // The provider reads as much as its addresses are long, whatever the name's length.
        let mut padded = [0u8; NAME_BYTES_MAX];
        let Some(room) = padded.get_mut(..name.len()) else { return Err(Code(libc::EINVAL)) };
        room.copy_from_slice(name);
        let mut address = 0;
        // SAFETY: the name is padded to the longest that any provider reads.
        check(unsafe { sys::rf_endpoint_resolve(self.raw.as_ptr(), padded.as_ptr().cast(), &mut address) })?;
        Ok(address)
    }

    /// Takes a peer's address back.
    pub(super) fn forget(&self, address: u64) {
        // SAFETY: the endpoint is open. A refusal leaves the address where it was, which costs a few bytes.
        let _ = unsafe { sys::rf_endpoint_forget(self.raw.as_ptr(), address) };
    }

    /// Starts a read of at most [`SEGMENTS_MAX`] segments.
    ///
    /// # Safety
    /// The segments are writable and nobody else's until the read has completed or the endpoint is closed; the context is not used by
    /// another operation and stays in place as long.
    pub(super) unsafe fn read(
        &self,
        segments: &[Segment],
        descriptor: Descriptor,
        from: (u64, u64),
        context: *mut Context,
        more: bool,
    ) -> Result<(), Code> {
        let (address, key) = from;
        // SAFETY: this function's contract.
        check(unsafe {
            let (raw, count) = (self.raw.as_ptr(), segments.len());
            sys::rf_read(raw, segments.as_ptr(), count, descriptor.0, address, key, context.cast(), more.into())
        })
    }

    /// Starts to send a message.
    ///
    /// # Safety
    /// The bytes stay as they are, and the context in place and unused by others, until the send has completed or the endpoint is closed.
    pub(super) unsafe fn send(
        &self,
        bytes: &[u8],
        descriptor: Descriptor,
        address: u64,
        context: *mut Context,
    ) -> Result<(), Code> {
        // SAFETY: this function's contract.
        check(unsafe {
            let raw = self.raw.as_ptr();
            sys::rf_send(raw, bytes.as_ptr().cast(), bytes.len(), descriptor.0, address, context.cast())
        })
    }

    /// Offers a buffer for a message of any peer.
    ///
    /// # Safety
    /// The buffer is writable and nobody else's, and the context in place and unused by others, until the receive has completed or the
    /// endpoint is closed.
    pub(super) unsafe fn receive(
        &self,
        buffer: *mut u8,
        bytes: usize,
        descriptor: Descriptor,
        context: *mut Context,
    ) -> Result<(), Code> {
        // SAFETY: this function's contract.
        check(unsafe { sys::rf_receive(self.raw.as_ptr(), buffer.cast(), bytes, descriptor.0, context.cast()) })
    }

    /// Makes progress and tells what has completed.
    pub(super) fn poll<'a>(&self, space: &'a mut [Completion]) -> Result<&'a [Completion], Code> {
        // SAFETY: the function fills no more entries than it is told.
        let returned = unsafe { sys::rf_poll(self.raw.as_ptr(), space.as_mut_ptr(), space.len()) };
        check(returned)?;
        Ok(&space[..returned as usize])
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        if !self.domain.is_ours() {
            return;
        }
        // SAFETY: the endpoint is open, and nobody uses it any more.
        if let Err(code) = check(unsafe { sys::rf_endpoint_close(self.raw.as_ptr()) }) {
            tracing::warn!("fabric: an endpoint cannot be closed: {}", self.domain.words(code));
        }
    }
}

/// An entry for [`Endpoint::poll`] to fill.
pub(super) const NO_COMPLETION: Completion = Completion { context: null_mut(), bytes: 0, error: 0, provider_error: 0 };

/// What local buffers are named by in operations; null where the provider does not ask for registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Descriptor(*mut std::ffi::c_void);

// SAFETY: a descriptor is a name that only the provider looks into.
unsafe impl Send for Descriptor {}
// SAFETY: as above.
unsafe impl Sync for Descriptor {}

impl Descriptor {
    /// Of memory that need not be registered.
    pub(super) const NONE: Self = Self(null_mut());
}

/// What a registration is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// Our own requests and replies, and words that are read.
    Staging,
    /// Rows of our own gets.
    Destination,
    /// Reads by peers.
    Exported,
}

impl Use {
    fn whose(self) -> &'static str {
        match self {
            Self::Staging => "messages",
            Self::Destination => "gets",
            Self::Exported => "peers",
        }
    }

    fn remedy(self) -> &'static str {
        match self {
            Self::Staging => "raise RLIMIT_MEMLOCK (ulimit -l)",
            Self::Destination => {
                "raise RLIMIT_MEMLOCK (ulimit -l), register less, or allocate the memory from the transport"
            }
            Self::Exported => "raise RLIMIT_MEMLOCK (ulimit -l), or set RUDDER_FABRIC_RMA=off",
        }
    }
}

/// Memory registered with a domain, or with one endpoint of it where the provider wants that.
pub(super) struct Registered {
    domain: Arc<Domain>,
    raw: NonNull<sys::Region>,
    /// `None` where the provider keeps no page in place. A drop comes to it after the deregistration.
    charge: Option<PinCharge>,
    // An endpoint with registrations cannot be closed.
    _endpoint: Option<Arc<Endpoint>>,
}

// SAFETY: as the domain's.
unsafe impl Send for Registered {}
// SAFETY: as above.
unsafe impl Sync for Registered {}

impl Registered {
    /// Registers memory. `key` is asked for where the provider makes none itself.
    ///
    /// # Errors
    /// A limit of pinned bytes, or the provider, refuses; the message carries the remedy.
    ///
    /// # Safety
    /// The memory outlives the registration.
    pub(super) unsafe fn new(
        endpoint: &Arc<Endpoint>,
        base: *mut u8,
        bytes: usize,
        purpose: Use,
        key: u64,
    ) -> Result<Self> {
        let domain = endpoint.domain();
        let access = match purpose {
            Use::Staging => sys::ACCESS_MESSAGES | sys::ACCESS_DESTINATION,
            Use::Destination => sys::ACCESS_DESTINATION,
            Use::Exported => sys::ACCESS_REMOTE_READ,
        };
        let charge = domain.limits.pinned_registration.then(|| pin_charge(bytes)).transpose()?;
        let mut raw = null_mut();
        // SAFETY: domain and endpoint are open; the memory is as this function's contract says.
        check(unsafe {
            let (domain, endpoint) = (domain.raw.as_ptr(), endpoint.raw.as_ptr());
            sys::rf_register(domain, endpoint, base.cast(), bytes, access, key, &mut raw)
        })
        .map_err(|code| {
            let (provider, words) = (domain.provider(), domain.words(code));
            failed(format!(
                "{provider} cannot register {bytes} bytes for {}: {words}; {}",
                purpose.whose(),
                purpose.remedy()
            ))
        })?;
        let raw = NonNull::new(raw).ok_or_else(|| failed("libfabric registered no memory"))?;
        let bound = domain.limits.endpoint_registration.then(|| Arc::clone(endpoint));
        Ok(Self { domain: Arc::clone(domain), raw, charge, _endpoint: bound })
    }

    pub(super) fn key(&self) -> Result<Key> {
        let mut key = Key { base: 0, bytes: 0, key: [0; sys::KEY_BYTES] };
        // SAFETY: the region is registered.
        check(unsafe { sys::rf_region_key(self.raw.as_ptr(), &mut key) })
            .map_err(|code| failed(format!("registered memory has no key for peers: {}", self.domain.words(code))))?;
        Ok(key)
    }

    pub(super) fn descriptor(&self) -> Descriptor {
        // SAFETY: the region is registered.
        Descriptor(unsafe { sys::rf_region_descriptor(self.raw.as_ptr()) })
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        if !self.domain.is_ours() {
            return;
        }
        // SAFETY: the region is registered, and nobody uses it any more.
        if let Err(code) = check(unsafe { sys::rf_deregister(self.raw.as_ptr()) }) {
            // It stays pinned, and so counted.
            std::mem::forget(self.charge.take());
            tracing::warn!("fabric: memory cannot be deregistered: {}", self.domain.words(code));
        }
    }
}
