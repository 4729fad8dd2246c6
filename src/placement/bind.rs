//! The choice, and its effect on threads and memory.

use super::{Nearest, Nic, NicKind, Numbers, Topology, kinds};
use crate::config::Bind;
use crate::error::Result;
use crate::memory::near::{Preferred, prefer_node};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::sync::Once;

/// What a rank knows of its host before it has met the others.
pub(crate) struct Site {
    topology: Topology,
    /// The cpus that the process may run on.
    cpus: Vec<u32>,
    /// The NICs that it could as well take, in order.
    nics: Vec<String>,
    distance: Option<u32>,
}

impl Site {
    /// This host, for a transport by name, and the NIC that the configuration names.
    ///
    /// # Errors
    /// There is no such NIC.
    pub(crate) fn read(transport: &str, nic: Option<&str>) -> Result<Self> {
        // Who needs no device is not made to read about them.
        let needed = nic.is_some() || !kinds(transport).is_empty();
        let topology = if needed { Topology::read() } else { Topology::default() };
        Self::of(topology, allowed_cpus(), transport, nic)
    }

    fn of(topology: Topology, cpus: Vec<u32>, transport: &str, nic: Option<&str>) -> Result<Self> {
        let (nics, distance) = match nic {
            Some(name) => (vec![topology.nic(name)?.name.clone()], None),
            None => match topology.nearest(kinds(transport), &cpus) {
                Some(Nearest { names, distance }) => (names, Some(distance)),
                None => (Vec::new(), None),
            },
        };
        Ok(Self { topology, cpus, nics, distance })
    }

    /// The NICs that the rank could as well take: ranks of a host that say the same take turns.
    pub(crate) fn nics(&self) -> &[String] {
        &self.nics
    }

    /// The rank's place; `turn` is how many ranks of this host before it have the same NICs to take.
    pub(crate) fn place(self, turn: usize, bind: Bind) -> Placement {
        let Self { topology, cpus, nics, distance } = self;
        let Some(name) = nics.get(turn % nics.len().max(1)) else { return Placement::default() };
        match distance {
            None => tracing::info!("nic {name}: as the configuration says"),
            Some(distance) if nics.len() == 1 => {
                tracing::info!("nic {name}: the nearest to cpus {}, at distance {distance}", Numbers(&cpus));
            }
            Some(distance) => tracing::info!(
                "nic {name}: turn {turn} of the ranks to which {} are equally near, at distance {distance}",
                nics.join(", ")
            ),
        }
        let nic = topology.nics.iter().find(|nic| nic.name == *name).cloned();
        let near = nic.as_ref().and_then(|nic| Near::of(&topology, nic, &cpus, bind));
        Placement { nic, near }
    }
}

/// Which NIC this process uses, and what it does to be near that.
#[derive(Default)]
pub(crate) struct Placement {
    nic: Option<Nic>,
    near: Option<Near>,
}

impl Placement {
    /// The NIC, where there is a choice of one.
    pub(crate) fn nic(&self) -> Option<&Nic> {
        self.nic.as_ref()
    }

    /// The name of the NIC, if it is of that kind.
    pub(crate) fn nic_of(&self, kind: NicKind) -> Option<String> {
        self.nic().filter(|nic| nic.kind == kind).map(|nic| nic.name.clone())
    }

    /// Does what allocates memory or starts threads so that these are near the NIC. Threads started within inherit the place; the calling
    /// thread is back in its own afterwards.
    pub(crate) fn near<R>(&self, work: impl FnOnce() -> R) -> R {
        let _there = self.near.as_ref().map(Near::go);
        work()
    }
}

struct Near {
    nic: String,
    /// The node that memory comes from, where there is one and not several.
    node: Option<u32>,
    /// The cpus that threads are started on; none where they stay.
    cpus: Vec<u32>,
    warned: Once,
}

/// The calling thread is elsewhere until this is dropped.
struct There {
    _memory: Option<Preferred>,
    cpus: Option<CpuSet>,
}

impl Near {
    /// `None` where nothing is to be done.
    fn of(topology: &Topology, nic: &Nic, allowed: &[u32], bind: Bind) -> Option<Self> {
        let name = nic.name.clone();
        if bind == Bind::Off {
            tracing::info!("bind off: memory and threads stay where the system puts them");
            return None;
        }
        if topology.nodes.len() < 2 {
            tracing::info!("bind: nothing to do, the host has one NUMA node");
            return None;
        }
        if nic.nodes.is_empty() {
            tracing::warn!(
                "memory and threads are not placed: the host does not say which NUMA node {name} is near; name one that it knows by RUDDER_NIC, \
                 or bind the rank by its launcher"
            );
            return None;
        }
        let here = topology.nodes.iter().filter(|node| nic.nodes.contains(&node.id));
        let mut near: Vec<u32> = here.flat_map(|node| &node.cpus).copied().collect();
        near.sort_unstable();
        let mut cpus: Vec<u32> = near.iter().copied().filter(|cpu| allowed.contains(cpu)).collect();
        let node = match nic.nodes[..] {
            [only] => Some(only),
            _ => None,
        };
        if cpus.is_empty() && !near.is_empty() {
            tracing::warn!(
                "threads stay on cpus {}: none of {}, near {name}, is among them; bind the rank there (srun --cpu-bind, mpirun --map-by numa) or \
                 name a nearer NIC by RUDDER_NIC",
                Numbers(allowed),
                Numbers(&near)
            );
        }
        if cpus.len() == allowed.len() {
            cpus.clear();
        }
        let threads =
            if cpus.is_empty() { "threads stay".into() } else { format!("threads on cpus {}", Numbers(&cpus)) };
        tracing::info!("near {name}: memory of NUMA node {}, {threads}", Numbers(&nic.nodes));
        Some(Self { nic: name, node, cpus, warned: Once::new() })
    }

    fn go(&self) -> There {
        let warn = |what: &str, cause: std::io::Error| {
            self.warned.call_once(|| {
                tracing::warn!(
                    "{what} near {} is refused ({cause}): allow it to the container (CAP_SYS_NICE, or its seccomp profile), bind the rank by \
                     its launcher, or set RUDDER_BIND=off",
                    self.nic
                );
            });
        };
        let memory = self.node.and_then(|node| prefer_node(node).map_err(|cause| warn("memory", cause)).ok());
        There {
            _memory: memory,
            cpus: self.go_to_cpus().unwrap_or_else(|cause| {
                warn("running", cause);
                None
            }),
        }
    }

    /// The cpus to go back to, where the thread has moved.
    fn go_to_cpus(&self) -> std::io::Result<Option<CpuSet>> {
        if self.cpus.is_empty() {
            return Ok(None);
        }
        let before = sched_getaffinity(None)?;
        let mut there = CpuSet::new();
        self.cpus.iter().map(|&cpu| cpu as usize).filter(|&cpu| cpu < CpuSet::MAX_CPU).for_each(|cpu| there.set(cpu));
        sched_setaffinity(None, &there)?;
        Ok(Some(before))
    }
}

impl Drop for There {
    fn drop(&mut self) {
        if let Some(cpus) = &self.cpus
            && let Err(cause) = sched_setaffinity(None, cpus)
        {
            tracing::warn!("a thread stays near the NIC: the system does not let it go back ({cause})");
        }
    }
}

/// The cpus that this thread, and so the process's later ones, may run on.
pub fn allowed_cpus() -> Vec<u32> {
    let Ok(set) = sched_getaffinity(None) else { return Vec::new() };
    (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).map(|cpu| cpu as u32).collect()
}

#[cfg(test)]
mod tests {
    //! Goal: ranks spread over NICs as their user expects, threads and memory follow, and nobody is moved for good or against the launcher.
    //! Method: recorded machines for the choice; this machine's own cpus for the move.

    use super::super::Node;
    use super::super::tests::{FOUR_NICS, Machine};
    use super::*;

    fn placed(host: &Topology, cpus: &[u32], turn: usize, bind: Bind) -> Placement {
        Site::of(host.clone(), cpus.to_vec(), "fabric", None).unwrap().place(turn, bind)
    }

    #[test]
    fn four_ranks_of_four_nodes_have_a_nic_each() {
        let host = Machine::new("each", FOUR_NICS).read();
        let taken = |cpus: &dyn Fn(usize) -> Vec<u32>, turn: &dyn Fn(usize) -> usize| {
            let mut nics: Vec<String> = (0..4)
                .map(|rank| placed(&host, &cpus(rank), turn(rank), Bind::Auto).nic().unwrap().name.clone())
                .collect();
            nics.sort();
            nics
        };
        let all = ["cxi0", "cxi1", "cxi2", "cxi3"];
        // Bound by the launcher, each is alone with its NIC; unbound, they take turns.
        assert_eq!(taken(&|rank| (16 * rank as u32..16 * rank as u32 + 16).collect(), &|_| 0), all);
        assert_eq!(taken(&|_| (0..128).collect(), &|rank| rank), all);
        assert_eq!(placed(&host, &[0], 5, Bind::Auto).nic().unwrap().name, "cxi3", "one is near: turns change nothing");
    }

    #[test]
    fn threads_and_memory_go_where_the_nic_is() {
        let host = Machine::new("follow", FOUR_NICS).read();
        let near = |cpus: &[u32], nic: Option<&str>, bind| {
            let site = Site::of(host.clone(), cpus.to_vec(), "fabric", nic).unwrap();
            site.place(1, bind).near.map(|near| (near.node, near.cpus))
        };
        let all: Vec<u32> = (0..128).collect();
        let node_2: Vec<u32> = (32..48).chain(96..112).collect();
        assert_eq!(near(&all, None, Bind::Auto), Some((Some(2), node_2)));
        assert_eq!(near(&all, None, Bind::Off), None);
        // Already there: memory is placed, threads need nothing. Not allowed there: threads stay, memory goes.
        assert_eq!(near(&[33, 40], None, Bind::Auto), Some((Some(2), vec![])));
        assert_eq!(near(&[0, 1], Some("cxi1"), Bind::Auto), Some((Some(2), vec![])));
        assert_eq!(near(&[1, 33], Some("cxi1"), Bind::Auto), Some((Some(2), vec![33])));
    }

    #[test]
    fn nothing_is_done_where_there_is_nothing_to_gain() {
        let node = |id| Node { id, cpus: vec![id], distances: vec![10, 20] };
        let nic = |nodes| Nic { name: "hsn0".into(), kind: NicKind::Net, nodes, up: true, link_mbit: None, pci: None };
        let two = |nodes| Topology { nodes: vec![node(0), node(1)], nics: vec![nic(nodes)] };
        assert!(placed(&two(vec![]), &[0, 1], 0, Bind::Auto).near.is_none(), "nobody knows where the NIC is");
        let between = placed(&two(vec![0, 1]), &[0, 1], 0, Bind::Auto).near.unwrap();
        assert!(between.node.is_none() && between.cpus.is_empty(), "it is near all");
        let one = Topology { nodes: vec![Node { distances: vec![10], ..node(0) }], nics: vec![nic(vec![0])] };
        assert!(placed(&one, &[0], 0, Bind::Auto).near.is_none());
        assert!(Site::read("tcp", None).unwrap().place(3, Bind::Auto).nic().is_none());
        assert!(Site::read("tcp", Some("no-such-nic")).is_err());
    }

    #[test]
    fn threads_started_near_stay_there_and_the_starter_goes_back() {
        let before = allowed_cpus();
        let cpu = *before.last().expect("a thread runs somewhere");
        let near = Near { nic: "hsn0".into(), node: Some(0), cpus: vec![cpu], warned: Once::new() };
        let placement = Placement { nic: None, near: Some(near) };
        let child = placement.near(|| {
            assert_eq!(allowed_cpus(), [cpu]);
            std::thread::spawn(allowed_cpus)
        });
        assert_eq!(child.join().unwrap(), [cpu]);
        assert_eq!(allowed_cpus(), before);
        let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| placement.near(|| panic!("within"))));
        assert!(unwound.is_err());
        assert_eq!(allowed_cpus(), before);
    }

    #[test]
    fn a_refusal_to_move_costs_nothing_else() {
        let before = allowed_cpus();
        // No machine has this cpu or this node.
        let near = Near { nic: "hsn0".into(), node: Some(1023), cpus: vec![1023], warned: Once::new() };
        let placement = Placement { nic: None, near: Some(near) };
        assert_eq!(placement.near(allowed_cpus), before);
        assert_eq!(allowed_cpus(), before);
    }
}
