//! Where a process stands on its host: which NIC it uses, and which memory and cpus are near that.
//!
//! The host is read from `/sys`, so that no system library is needed and a laptop without a NIC needs nothing at all; with the feature
//! `hwloc` the distances and the cpus near a device are hwloc's, which knows more machines' mistakes. Either reading is the same plain
//! [`Topology`], and the choice is one function of it: it runs on recorded machines in the tests.
//!
//! A rank takes one NIC: of those nearest to the cpus that its launcher gave it, ranks that are equally near take turns. Then, on a host
//! with several NUMA nodes, memory is allocated and threads are started near that NIC, by a policy of the starting thread that
//! its children inherit: whatever a transport allocates and starts in its own way is placed, too. The job's own threads stay where they are.

mod bind;
#[cfg(feature = "hwloc")]
mod hwloc;
mod sysfs;

pub use bind::allowed_cpus;
pub(crate) use bind::{Placement, Site};

use crate::error::{Error, Result};
use std::fmt;

/// What a NIC is to the programs that use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NicKind {
    /// A Slingshot device, such as `cxi0`.
    Cxi,
    /// An RDMA device, InfiniBand or RoCE, such as `mlx5_0`.
    Infiniband,
    /// A network interface of a device, such as `eth0`.
    Net,
}

/// A device that connects this host to others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// Its name among those of its kind.
    pub name: String,
    /// What it is.
    pub kind: NicKind,
    /// The NUMA nodes that are nearest to it, ascending; empty where the host does not say.
    pub nodes: Vec<u32>,
    /// Whether a port is active, as far as the host says.
    pub up: bool,
    /// What its fastest port moves, in Mbit/s, as far as the host says.
    pub link_mbit: Option<u32>,
    /// Its PCI address, where it has one.
    pci: Option<String>,
}

impl Nic {
    /// A NIC that is up, of which the host says nothing more.
    pub fn named(name: &str, kind: NicKind) -> Self {
        Self { name: name.to_owned(), kind, nodes: Vec::new(), up: true, link_mbit: None, pci: None }
    }
}

/// A NUMA node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The system's number for it.
    pub id: u32,
    /// Its cpus, ascending; none where it is memory alone.
    pub cpus: Vec<u32>,
    /// The distance to every node, itself included, in the order of [`Topology::nodes`]; 10 is the distance to itself.
    pub distances: Vec<u32>,
}

/// NUMA nodes and NICs of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// The nodes, ascending; one that has no number of its own is node 0.
    pub nodes: Vec<Node>,
    /// The NICs, by kind and name.
    pub nics: Vec<Nic>,
}

/// A NIC, how far it is, and among how many equals it was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Nearest {
    pub names: Vec<String>,
    pub distance: u32,
}

impl Topology {
    /// This host, as it is now.
    pub fn read() -> Self {
        let host = sysfs::read(std::path::Path::new("/"));
        #[cfg(feature = "hwloc")]
        let host = hwloc::refine(host);
        host
    }

    /// The NICs of the first of these kinds that has an active one, those nearest to `cpus` and of equal distance.
    pub(crate) fn nearest(&self, kinds: &[NicKind], cpus: &[u32]) -> Option<Nearest> {
        let active = |kind: &&NicKind| self.nics.iter().any(|nic| nic.kind == **kind && nic.up);
        let kind = kinds.iter().find(active)?;
        let candidates = self.nics.iter().filter(|nic| nic.kind == *kind && nic.up);
        let distances: Vec<(u32, &Nic)> = candidates.map(|nic| (self.distance(nic, cpus), nic)).collect();
        let distance = distances.iter().map(|(distance, _)| *distance).min()?;
        let names = distances.iter().filter(|(other, _)| *other == distance).map(|(_, nic)| nic.name.clone());
        Some(Nearest { names: names.collect(), distance })
    }

    /// The NIC of that name.
    ///
    /// # Errors
    /// Names those that there are.
    pub(crate) fn nic(&self, name: &str) -> Result<&Nic> {
        self.nics.iter().find(|nic| nic.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.nics.iter().map(|nic| nic.name.as_str()).collect();
            let there = if names.is_empty() { "none".into() } else { names.join(", ") };
            Error::config(format!("no NIC is named `{name}` on this host; there are {there}"))
        })
    }

    /// The least distance between a node that has one of these cpus and one near the NIC. A NIC of which the host says nothing is as far as the
    /// farthest.
    ///
    /// ```
    /// use rudder::placement::{Nic, NicKind, Node, Topology};
    ///
    /// let mut near = Nic::named("cxi0", NicKind::Cxi);
    /// near.nodes = vec![1];
    /// let node = |id, cpus: [u32; 2], distances: [u32; 2]| Node { id, cpus: cpus.to_vec(), distances: distances.to_vec() };
    /// let host = Topology { nodes: vec![node(0, [0, 1], [10, 21]), node(1, [2, 3], [21, 10])], nics: vec![near] };
    /// assert_eq!([[0], [3]].map(|cpus| host.distance(&host.nics[0], &cpus)), [21, 10]);
    /// ```
    pub fn distance(&self, nic: &Nic, cpus: &[u32]) -> u32 {
        let farthest = self.nodes.iter().flat_map(|node| &node.distances).copied().max().unwrap_or(LOCAL);
        let own = self.nodes.iter().filter(|node| node.cpus.iter().any(|cpu| cpus.contains(cpu)));
        let between = |node: &Node| {
            let near = self.nodes.iter().zip(&node.distances).filter(|(other, _)| nic.nodes.contains(&other.id));
            near.map(|(_, distance)| *distance).min()
        };
        own.filter_map(between).min().unwrap_or(farthest)
    }
}

/// What a node is from itself.
const LOCAL: u32 = 10;

/// The kinds of NIC that a transport takes, best first; none where it takes no device by name.
pub(crate) fn kinds(transport: &str) -> &'static [NicKind] {
    match transport {
        "fabric" => &[NicKind::Cxi, NicKind::Infiniband, NicKind::Net],
        "verbs" => &[NicKind::Infiniband],
        _ => &[],
    }
}

/// Numbers as the kernel lists them: `0-3,8`.
struct Numbers<'a>(&'a [u32]);

impl fmt::Display for Numbers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, run) in self.0.chunk_by(|a, b| a + 1 == *b).enumerate() {
            let comma = if at > 0 { "," } else { "" };
            match run {
                [only] => write!(f, "{comma}{only}")?,
                [first, .., last] => write!(f, "{comma}{first}-{last}")?,
                [] => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    //! Goal: each rank takes the NIC that a person who knows the machine would give it. Method: recorded machines.

    use super::*;

    /// A recorded machine: lines of a path under the root, a colon, and what the file holds.
    pub(crate) struct Machine(std::path::PathBuf);

    impl Machine {
        pub(crate) fn new(name: &str, files: &str) -> Self {
            let root = std::env::temp_dir().join(format!("rudder-topology-{}-{name}", std::process::id()));
            for line in files.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
                let (path, content) = line.split_once(": ").expect("a path, a colon and a blank");
                let path = root.join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, format!("{content}\n")).unwrap();
            }
            Self(root)
        }

        pub(crate) fn read(&self) -> Topology {
            sysfs::read(&self.0)
        }
    }

    impl Drop for Machine {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    pub(crate) const FOUR_NICS: &str = include_str!("../../tests/data/topology/four-nics.txt");
    const TWO_SOCKETS: &str = include_str!("../../tests/data/topology/two-sockets.txt");
    const LAPTOP: &str = include_str!("../../tests/data/topology/laptop.txt");

    fn nearest(host: &Topology, transport: &str, cpus: &[u32]) -> (Vec<String>, u32) {
        let Nearest { names, distance } = host.nearest(kinds(transport), cpus).expect("there is one");
        (names, distance)
    }

    #[test]
    fn four_bound_ranks_take_the_nic_of_their_node() {
        let host = Machine::new("bound", FOUR_NICS).read();
        assert_eq!(host.nodes.iter().map(|node| node.id).collect::<Vec<_>>(), [0, 1, 2, 3]);
        // Its interface says how fast the device is; that of hsn1 says nothing.
        assert_eq!(host.nics[..2].iter().map(|nic| nic.link_mbit).collect::<Vec<_>>(), [Some(200_000), None]);
        for (first, nic) in [(0, "cxi3"), (16, "cxi2"), (32, "cxi1"), (48, "cxi0")] {
            let cpus: Vec<u32> = (first..first + 16).chain(first + 64..first + 80).collect();
            assert_eq!(nearest(&host, "fabric", &cpus), (vec![nic.to_owned()], 10));
        }
    }

    #[test]
    fn ranks_that_may_run_anywhere_have_all_nics_equally_near() {
        let host = Machine::new("unbound", FOUR_NICS).read();
        let all: Vec<u32> = (0..128).collect();
        let names = ["cxi0", "cxi1", "cxi2", "cxi3"].map(str::to_owned);
        assert_eq!(nearest(&host, "fabric", &all), (names.to_vec(), 10));
    }

    #[test]
    fn a_node_without_a_nic_takes_the_nearest_active_one_of_its_kind() {
        let host = Machine::new("sockets", TWO_SOCKETS).read();
        let rates: Vec<Option<u32>> = host.nics.iter().map(|nic| nic.link_mbit).collect();
        assert_eq!(rates, [None, Some(100_000), Some(400_000), None, None], "an idle port's rate and -1 say nothing");
        // Node 0 has mlx5_0, whose port is down, and both of mlx5_1 and mlx5_2 are across the link; the other nodes have memory only or theirs.
        assert_eq!(nearest(&host, "verbs", &[0]), (vec!["mlx5_1".to_owned(), "mlx5_2".to_owned()], 21));
        assert_eq!(nearest(&host, "verbs", &[9]), (vec!["mlx5_1".to_owned(), "mlx5_2".to_owned()], 10));
        assert!(host.nodes[2].cpus.is_empty(), "node 2 is memory alone");
        assert!(host.nearest(kinds("tcp"), &[0]).is_none(), "tcp listens where the job says");
    }

    #[test]
    fn a_laptop_has_one_node_and_no_rdma() {
        let host = Machine::new("laptop", LAPTOP).read();
        assert_eq!((host.nodes.len(), host.nics.len()), (1, 1));
        assert_eq!(host.nearest(kinds("verbs"), &[0]), None);
        assert_eq!(nearest(&host, "fabric", &[0]), (vec!["wlan0".to_owned()], 10));
        let error = host.nic("mlx5_0").unwrap_err().to_string();
        assert!(error.contains("there are wlan0"), "{error}");
    }

    #[test]
    fn a_host_that_says_nothing_is_one_node_without_nics() {
        let host = Machine::new("empty", "proc/version: Linux").read();
        assert_eq!((host.nodes.len(), host.nics.len()), (1, 0));
        let error = host.nic("eth0").unwrap_err().to_string();
        assert!(error.contains("there are none"), "{error}");
    }

    #[test]
    fn this_host_can_be_read() {
        let host = Topology::read();
        assert!(host.nodes.iter().all(|node| node.distances.len() == host.nodes.len()), "{host:?}");
        assert!(host.nodes.iter().any(|node| !node.cpus.is_empty()), "{host:?}");
    }

    #[test]
    fn numbers_are_told_in_runs() {
        assert_eq!(Numbers(&[0, 1, 2, 8, 10, 11]).to_string(), "0-2,8,10-11");
        assert_eq!(Numbers(&[]).to_string(), "");
    }
}
