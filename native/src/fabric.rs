//! `shim/fabric.h`, word for word.

use std::ffi::{c_char, c_int, c_void};

/// Most bytes of a name in [`Limits`], its final 0 included.
pub const NAME_BYTES: usize = 64;
/// Most bytes of a registered region's key.
pub const KEY_BYTES: usize = 128;
/// Most segments of one read.
pub const SEGMENTS_MAX: usize = 8;

/// Source and destination of messages.
pub const ACCESS_MESSAGES: u32 = 1;
/// Destination of reads.
pub const ACCESS_DESTINATION: u32 = 2;
/// Peers may read it.
pub const ACCESS_REMOTE_READ: u32 = 4;

/// What a provider uses while its operation is under way.
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug, Default)]
pub struct Context([u64; 8]);

macro_rules! opaque {
    ($($(#[$about:meta])* $name:ident,)*) => {$(
        $(#[$about])*
        #[repr(C)]
        pub struct $name {
            private: [u8; 0],
        }
    )*};
}

opaque! {
    /// libfabric, loaded.
    Library,
    /// A provider's offer.
    Info,
    /// An open network interface.
    Domain,
    /// An endpoint with its completion queue and address vector.
    Endpoint,
    /// Registered memory.
    Region,
}

/// What a provider says of itself.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "named as in libfabric's manual")]
pub struct Limits {
    pub sends_max: u64,
    pub receives_max: u64,
    pub message_bytes_max: u64,
    pub inject_bytes_max: u64,
    pub local_segments_max: u32,
    pub remote_segments_max: u32,
    pub mr_mode: u32,
    pub can_read: bool,
    pub local_registration: bool,
    pub endpoint_registration: bool,
    pub pinned_registration: bool,
    pub manual_progress: bool,
    pub provider: [c_char; NAME_BYTES],
    pub domain: [c_char; NAME_BYTES],
    pub fabric: [c_char; NAME_BYTES],
}

/// One contiguous piece of a read.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "as in the header")]
pub struct Segment {
    pub local: *mut c_void,
    pub remote: u64,
    pub bytes: u64,
}

/// How a peer names registered memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in the header")]
pub struct Key {
    pub base: u64,
    pub bytes: u32,
    pub key: [u8; KEY_BYTES],
}

/// The end of one operation.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "as in the header")]
pub struct Completion {
    pub context: *mut c_void,
    pub bytes: u64,
    pub error: i32,
    pub provider_error: i32,
}

#[expect(missing_docs, reason = "as in the header")]
unsafe extern "C" {
    pub fn rf_load(path: *const c_char, library: *mut *mut Library, why: *mut c_char, why_bytes: usize) -> c_int;
    pub fn rf_version(library: *const Library) -> u32;
    pub fn rf_strerror(library: *const Library, error: c_int) -> *const c_char;

    pub fn rf_find(
        library: *const Library,
        provider: *const c_char,
        domain: *const c_char,
        source: *const c_char,
        reads: c_int,
        info: *mut *mut Info,
    ) -> c_int;
    pub fn rf_describe(info: *const Info, limits: *mut Limits);
    pub fn rf_free(library: *const Library, info: *mut Info);

    pub fn rf_domain_open(library: *const Library, info: *mut Info, domain: *mut *mut Domain) -> c_int;
    pub fn rf_domain_close(domain: *mut Domain) -> c_int;

    pub fn rf_endpoint_open(domain: *mut Domain, completions: u64, endpoint: *mut *mut Endpoint) -> c_int;
    pub fn rf_endpoint_close(endpoint: *mut Endpoint) -> c_int;
    pub fn rf_endpoint_descriptor(endpoint: *const Endpoint) -> c_int;
    pub fn rf_endpoint_may_wait(endpoint: *mut Endpoint) -> c_int;
    pub fn rf_endpoint_name(endpoint: *mut Endpoint, name: *mut c_void, bytes: *mut usize) -> c_int;
    pub fn rf_endpoint_resolve(endpoint: *mut Endpoint, name: *const c_void, address: *mut u64) -> c_int;
    pub fn rf_endpoint_forget(endpoint: *mut Endpoint, address: u64) -> c_int;

    pub fn rf_register(
        domain: *mut Domain,
        endpoint: *mut Endpoint,
        base: *mut c_void,
        bytes: usize,
        access: u32,
        wanted_key: u64,
        region: *mut *mut Region,
    ) -> c_int;
    pub fn rf_deregister(region: *mut Region) -> c_int;
    pub fn rf_region_key(region: *mut Region, key: *mut Key) -> c_int;
    pub fn rf_region_descriptor(region: *mut Region) -> *mut c_void;
    pub fn rf_key_import(domain: *mut Domain, key: *const Key, imported: *mut u64) -> c_int;
    pub fn rf_key_release(domain: *mut Domain, imported: u64);

    pub fn rf_read(
        endpoint: *mut Endpoint,
        segments: *const Segment,
        count: usize,
        descriptor: *mut c_void,
        address: u64,
        key: u64,
        context: *mut c_void,
        more: c_int,
    ) -> c_int;
    pub fn rf_send(
        endpoint: *mut Endpoint,
        bytes: *const c_void,
        count: usize,
        descriptor: *mut c_void,
        address: u64,
        context: *mut c_void,
    ) -> c_int;
    pub fn rf_receive(
        endpoint: *mut Endpoint,
        bytes: *mut c_void,
        count: usize,
        descriptor: *mut c_void,
        context: *mut c_void,
    ) -> c_int;
    pub fn rf_poll(endpoint: *mut Endpoint, completions: *mut Completion, max: usize) -> c_int;
}
