//! The NUMA node that a thread's fresh pages come from.
//!
//! A policy of the thread and not of a range: it holds for whatever a transport allocates in its own way, and pages of a shared memory
//! file follow it as those of private memory do. Preferred, not demanded: a full node costs speed, never the job.

use std::io;
use std::marker::PhantomData;

/// Nodes that a mask has bits for: the most that a kernel can be built with.
const NODES_MAX: usize = 1024;
const WORDS: usize = NODES_MAX / libc::c_ulong::BITS as usize;

/// Until this is dropped, the thread's fresh pages come from one node as far as it has any.
pub(crate) struct Preferred {
    mode: libc::c_int,
    nodes: [libc::c_ulong; WORDS],
    /// The policy is the thread's: it must end where it began.
    thread: PhantomData<*const ()>,
}

/// Prefers a node for the fresh pages of this thread.
///
/// # Errors
/// There is no such node, or the system does not let the process choose.
pub(crate) fn prefer_node(node: u32) -> io::Result<Preferred> {
    let mut previous = Preferred { mode: 0, nodes: [0; WORDS], thread: PhantomData };
    let node = node as usize;
    let bits = libc::c_ulong::BITS as usize;
    let mut nodes = [0; WORDS];
    *nodes.get_mut(node / bits).ok_or(io::ErrorKind::InvalidInput)? = 1 << (node % bits);
    // SAFETY: the kernel writes one int and a mask of as many bits as it is told that there are.
    let asked = unsafe {
        libc::syscall(
            libc::SYS_get_mempolicy,
            &raw mut previous.mode,
            &raw mut previous.nodes,
            NODES_MAX,
            0usize,
            0usize,
        )
    };
    if asked != 0 {
        // Nothing was changed, so that nothing is to be restored.
        let cause = io::Error::last_os_error();
        std::mem::forget(previous);
        return Err(cause);
    }
    if set(libc::MPOL_PREFERRED, &nodes) != 0 {
        let cause = io::Error::last_os_error();
        std::mem::forget(previous);
        return Err(cause);
    }
    Ok(previous)
}

fn set(mode: libc::c_int, nodes: &[libc::c_ulong; WORDS]) -> libc::c_long {
    // SAFETY: the kernel reads a mask of as many bits as it is told that there are, less the one that it does not count.
    unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, nodes.as_ptr(), NODES_MAX + 1) }
}

impl Drop for Preferred {
    fn drop(&mut self) {
        // What was in force a moment ago is allowed still; a refusal would leave a preference, which harms nothing.
        set(self.mode, &self.nodes);
    }
}

#[cfg(test)]
mod tests {
    //! Goal: the policy holds as long as its guard, and what was there before comes back. Method: the kernel's own words for this thread.

    use super::*;

    /// The policy of a page that this thread has just touched.
    fn policy() -> String {
        let page = vec![1u8; 1 << 20];
        let maps = std::fs::read_to_string("/proc/thread-self/numa_maps").unwrap_or_default();
        let at = page.as_ptr() as usize;
        let below =
            |line: &&str| usize::from_str_radix(line.split(' ').next().unwrap_or(""), 16).is_ok_and(|base| base <= at);
        let line = maps.lines().rfind(below).unwrap_or_default();
        line.split(' ').nth(1).unwrap_or_default().to_owned()
    }

    #[test]
    fn a_preference_ends_with_its_guard() {
        let before = policy();
        match prefer_node(0) {
            Ok(preferred) => {
                let within = policy();
                // Kernels without numa_maps say nothing.
                assert!(within.is_empty() || within == "prefer:0", "{within}");
                drop(preferred);
            }
            // Sandboxes forbid the call: then it must be this answer and no other.
            Err(cause) => assert!(
                matches!(cause.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)),
                "node 0 is there, yet: {cause}"
            ),
        }
        assert_eq!(policy(), before);
    }

    #[test]
    fn nodes_that_do_not_exist_are_refused() {
        assert!(prefer_node(u32::MAX).is_err());
        assert!(prefer_node(1023).is_err());
    }
}
