//! Sockets: their options, and scatter-gather calls over raw memory.
//!
//! The vectored calls go to libc: rustix and std want slices, and rows that peers read and write behind the compiler's back are
//! never slices.

use crate::error::{Error, Result};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Most pieces of one vectored call (the kernel's UIO_MAXIOV).
pub const PIECES_MAX: usize = 1024;

/// One piece of memory of a vectored call.
pub type Piece = libc::iovec;

/// A list of pieces that grows by neighbours: what continues the last piece lengthens it.
pub struct Pieces {
    list: Vec<Piece>,
    bytes: usize,
}

// SAFETY: pieces are addresses; they are dereferenced only within the calls below, under those calls' contracts.
unsafe impl Send for Pieces {}

impl Pieces {
    pub fn new() -> Self {
        Self { list: Vec::with_capacity(PIECES_MAX), bytes: 0 }
    }

    pub fn clear(&mut self) {
        self.list.clear();
        self.bytes = 0;
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends a piece; false where the list is full.
    pub fn push(&mut self, base: *mut u8, bytes: usize) -> bool {
        if let Some(last) = self.list.last_mut()
            && last.iov_base.cast::<u8>().wrapping_add(last.iov_len) == base
        {
            last.iov_len += bytes;
        } else if self.list.len() == PIECES_MAX {
            return false;
        } else {
            self.list.push(Piece { iov_base: base.cast(), iov_len: bytes });
        }
        self.bytes += bytes;
        true
    }

    pub fn is_full(&self) -> bool {
        self.list.len() == PIECES_MAX
    }

    /// Sends all of it on a blocking socket.
    ///
    /// # Safety
    /// Every piece is readable for the call.
    pub unsafe fn send_all(&mut self, socket: BorrowedFd<'_>) -> rustix::io::Result<()> {
        let mut from = 0;
        while from < self.list.len() {
            // SAFETY: a zeroed msghdr is a valid empty message.
            let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
            message.msg_iov = self.list[from..].as_mut_ptr();
            message.msg_iovlen = self.list.len() - from;
            // SAFETY: the list lives and its pieces are readable by this function's contract; the descriptor is borrowed.
            let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_NOSIGNAL) };
            match length(sent) {
                Ok(sent) => from = self.advance(from, sent),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Skips what has been sent and returns the first piece that has bytes left.
    fn advance(&mut self, mut from: usize, mut sent: usize) -> usize {
        while from < self.list.len() && sent >= self.list[from].iov_len {
            sent -= self.list[from].iov_len;
            from += 1;
        }
        if sent > 0 {
            let piece = &mut self.list[from];
            piece.iov_base = piece.iov_base.cast::<u8>().wrapping_add(sent).cast();
            piece.iov_len -= sent;
        }
        from
    }

    /// Receives into the pieces, in order, what is there.
    ///
    /// # Safety
    /// Every piece is writable for the call, and nobody else touches it.
    pub unsafe fn receive(&mut self, socket: BorrowedFd<'_>) -> rustix::io::Result<usize> {
        // SAFETY: the list lives and its pieces are writable by this function's contract; the descriptor is borrowed.
        length(unsafe { libc::readv(socket.as_raw_fd(), self.list.as_ptr(), self.list.len() as libc::c_int) })
    }
}

fn length(answer: isize) -> rustix::io::Result<usize> {
    usize::try_from(answer).map_err(|_| Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}

/// A socket for a peer at `address`; its buffers are sized before it connects or listens, when the window scale is still open.
pub fn stream(address: &SocketAddr, flags: SocketFlags, buffer_bytes: usize) -> rustix::io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, flags | SocketFlags::CLOEXEC, None)?;
    if buffer_bytes > 0 {
        sockopt::set_socket_recv_buffer_size(&socket, buffer_bytes)?;
        sockopt::set_socket_send_buffer_size(&socket, buffer_bytes)?;
    }
    Ok(socket)
}

/// What both ends of a connection want: no delay for small frames, and an end for a peer that vanished without a word.
pub fn tune(socket: impl AsFd, silent: Duration) -> rustix::io::Result<()> {
    let socket = socket.as_fd();
    sockopt::set_tcp_nodelay(socket, true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    let probes = 4;
    let apart = Duration::from_secs((silent.as_secs() / u64::from(probes + 1)).max(1));
    sockopt::set_tcp_keepidle(socket, apart)?;
    sockopt::set_tcp_keepintvl(socket, apart)?;
    sockopt::set_tcp_keepcnt(socket, probes)?;
    sockopt::set_tcp_user_timeout(socket, silent.as_millis().min(u128::from(u32::MAX)) as u32)
}

/// The address that a configured interface means: an IP address is itself, a name is looked up (its first IPv4 address, else its first IPv6).
///
/// # Errors
/// No such interface, or it has no address; a wildcard, which peers could not dial.
pub fn interface_address(interface: &str) -> Result<IpAddr> {
    let address = match interface.parse() {
        Ok(address) => address,
        Err(_) => named_interface(interface)?,
    };
    if address.is_unspecified() {
        return Err(Error::config(format!(
            "tcp.interface {address} is no address that peers can dial: name an interface or one of its addresses"
        )));
    }
    Ok(address)
}

fn named_interface(name: &str) -> Result<IpAddr> {
    let mut found: Vec<(String, IpAddr)> = Vec::new();
    let mut list: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: getifaddrs writes one list head to the pointer it is given.
    if unsafe { libc::getifaddrs(&mut list) } != 0 {
        return Err(Error::config(format!("cannot list interfaces: {}", std::io::Error::last_os_error())));
    }
    let mut entry = list;
    while !entry.is_null() {
        // SAFETY: entries of the list are valid until freeifaddrs below.
        let one = unsafe { &*entry };
        // SAFETY: a name in the list is a C string, and an address is null or valid for its family.
        if let (label, Some(ip)) = unsafe { (std::ffi::CStr::from_ptr(one.ifa_name), ip_of(one.ifa_addr)) } {
            found.push((label.to_string_lossy().into_owned(), ip));
        }
        entry = one.ifa_next;
    }
    // SAFETY: the list came from getifaddrs and nothing of it is used any more.
    unsafe { libc::freeifaddrs(list) };
    let of_name = || found.iter().filter(|(label, _)| label == name).map(|&(_, ip)| ip);
    of_name().find(IpAddr::is_ipv4).or_else(|| of_name().next()).ok_or_else(|| {
        let mut names: Vec<_> = found.iter().map(|(label, _)| label.as_str()).collect();
        names.dedup();
        Error::config(format!("tcp.interface {name:?} has no address here; interfaces with one: {}", names.join(", ")))
    })
}

/// # Safety
/// The address is null or valid for its family.
unsafe fn ip_of(address: *const libc::sockaddr) -> Option<IpAddr> {
    if address.is_null() {
        return None;
    }
    // SAFETY: not null, hence valid; the family says which structure it is.
    unsafe {
        match i32::from((*address).sa_family) {
            libc::AF_INET => {
                Some(IpAddr::V4((*address.cast::<libc::sockaddr_in>()).sin_addr.s_addr.to_ne_bytes().into()))
            }
            libc::AF_INET6 => Some(IpAddr::V6((*address.cast::<libc::sockaddr_in6>()).sin6_addr.s6_addr.into())),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    //! Goal: an interface is found by name or address, and what peers could not dial is refused.

    use super::*;

    #[test]
    fn interfaces() {
        assert!(interface_address("127.0.0.1").unwrap().is_loopback());
        assert!(interface_address("::1").unwrap().is_loopback());
        assert!(interface_address("lo").unwrap().is_loopback());
        assert!(interface_address("0.0.0.0").is_err());
        let cause = interface_address("no-such-interface").unwrap_err().to_string();
        assert!(cause.contains("lo"), "{cause}");
    }
}
