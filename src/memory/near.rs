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

    use crate::memory::{Memory, Pages};

    /// What the kernel says of the mapping that an address is in: its policy first; nothing where it keeps no account.
    fn account(address: usize) -> String {
        let maps = std::fs::read_to_string("/proc/thread-self/numa_maps").unwrap_or_default();
        let begins = |line: &&str| {
            line.split(' ').next().is_some_and(|base| usize::from_str_radix(base, 16).is_ok_and(|base| base <= address))
        };
        maps.lines()
            .rfind(begins)
            .and_then(|line| line.split_once(' '))
            .map(|(_, account)| account.to_owned())
            .unwrap_or_default()
    }

    /// The policy of memory that this thread has just had.
    fn policy() -> String {
        let page = vec![1u8; 1 << 20];
        account(page.as_ptr() as usize).split(' ').next().unwrap_or_default().to_owned()
    }

    /// Sandboxes forbid the calls: then this must be the answer and no other.
    fn is_forbidden(cause: &io::Error) -> bool {
        matches!(cause.raw_os_error(), Some(libc::EPERM | libc::ENOSYS))
    }

    #[test]
    fn a_preference_ends_with_its_guard() {
        let before = policy();
        match prefer_node(0) {
            Ok(preferred) => {
                let within = policy();
                assert!(within.is_empty() || within == "prefer:0", "{within}");
                drop(preferred);
            }
            Err(cause) => assert!(is_forbidden(&cause), "node 0 is there, yet: {cause}"),
        }
        assert_eq!(policy(), before);
    }

    #[test]
    fn tables_have_the_memory_of_the_preferred_node() {
        let nodes = crate::placement::Topology::read().nodes;
        for node in nodes.iter().map(|node| node.id) {
            let preferred = match prefer_node(node) {
                Ok(preferred) => preferred,
                Err(cause) => return assert!(is_forbidden(&cause), "node {node} is there, yet: {cause}"),
            };
            for huge in [false, true] {
                let memory = Memory::allocate_with(4 << 20, Pages { huge, locked: false }).unwrap();
                let account = account(memory.base() as usize);
                let elsewhere = nodes
                    .iter()
                    .filter(|other| other.id != node)
                    .any(|other| account.contains(&format!(" N{}=", other.id)));
                assert!(account.is_empty() || account.contains(&format!(" N{node}=")) && !elsewhere, "{account}");
            }
            drop(preferred);
        }
    }

    #[test]
    fn nodes_that_do_not_exist_are_refused() {
        assert!(prefer_node(u32::MAX).is_err());
        assert!(prefer_node(1023).is_err());
    }
}
