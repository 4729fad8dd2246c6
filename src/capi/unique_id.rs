//! What the ranks of a job find each other by.

use super::argument::{Out, read, words};
use super::status::{Answer, Failure, call, rudder_status};
use crate::bootstrap::UniqueId;
use std::ffi::c_char;
use std::net::{IpAddr, SocketAddr};

/// Bytes of a unique id.
pub const RUDDER_UNIQUE_ID_BYTES: usize = 64;

const _: () = assert!(RUDDER_UNIQUE_ID_BYTES == UniqueId::BYTES);

/// Names one job: where rank 0 listens, and the secret by which ranks prove that they belong. Rank 0's process creates it and the program
/// spreads the bytes by whatever it has (a store, MPI, a file); whoever holds them can join, so keep them out of logs.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct rudder_unique_id {
    /// Opaque.
    pub bytes: [u8; RUDDER_UNIQUE_ID_BYTES],
}

/// Creates a unique id and listens for the ranks of its job. Rank 0 must join in this process. At most 64 may wait to be joined.
///
/// `listen` is the address that the other ranks reach this process at: "ip", which takes a free port, or "ip:port" ("[ip]:port" for IPv6);
/// NULL is the loopback interface, for jobs on one machine.
///
/// Errors: RUDDER_ARGUMENT (no address, or none that can be listened on), RUDDER_FULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rudder_unique_id_create(listen: *const c_char, id: *mut rudder_unique_id) -> rudder_status {
    call(|| {
        // SAFETY: what the header asks of the caller.
        let (id, listen) = unsafe { (Out::new(id, "id")?, words(listen, "listen")?) };
        let listen = listen.map(address).transpose()?;
        id.set(rudder_unique_id { bytes: UniqueId::create(listen)?.to_bytes() });
        Ok(())
    })
}

fn address(text: &str) -> Answer<SocketAddr> {
    let with_port = || text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 0));
    text.parse().or_else(|_| with_port()).map_err(|_| {
        Failure::argument(format!(
            "argument: listen is `{text}`: expected an address such as 10.0.0.7 or 10.0.0.7:4000"
        ))
    })
}

/// # Safety
/// `id` is NULL or valid for reads during the call.
pub(super) unsafe fn read_id(id: *const rudder_unique_id) -> Answer<UniqueId> {
    // SAFETY: the caller's promise.
    let id = unsafe { read(id, "id") }?;
    Ok(UniqueId::from_bytes(id.bytes)?)
}
