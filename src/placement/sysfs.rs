//! The host as `/sys` shows it: what the kernel knows of nodes, their distances, and the devices near them.

use super::{LOCAL, Nic, NicKind, Node, Topology};
use std::fs::{read_dir, read_to_string};
use std::path::{Path, PathBuf};

const CLASSES: [(&str, NicKind); 3] =
    [("cxi", NicKind::Cxi), ("infiniband", NicKind::Infiniband), ("net", NicKind::Net)];

/// More of either is no machine but a broken list.
const NUMBERS_MAX: u32 = 1 << 16;

/// The host under a root directory. What cannot be read is left out: a host that shows nothing has one node and no NIC.
pub(super) fn read(root: &Path) -> Topology {
    let sys = root.join("sys");
    let nodes = nodes(&sys);
    let nics = CLASSES.iter().flat_map(|&(class, kind)| nics(&sys.join("class").join(class), kind)).collect();
    Topology { nodes, nics }
}

fn nodes(sys: &Path) -> Vec<Node> {
    let system = sys.join("devices/system");
    let ids = numbers(&word(&system.join("node/online")));
    let node = |&id: &u32| {
        let home = system.join(format!("node/node{id}"));
        let cpus = numbers(&word(&home.join("cpulist")));
        let distances = word(&home.join("distance")).split_whitespace().filter_map(|text| text.parse().ok()).collect();
        Node { id, cpus, distances }
    };
    let nodes: Vec<Node> = ids.iter().map(node).collect();
    if nodes.is_empty() || nodes.iter().any(|node| node.distances.len() != nodes.len()) {
        // A kernel without NUMA, or one whose account does not hold together: then nothing is near or far.
        let cpus = numbers(&word(&system.join("cpu/online")));
        return vec![Node { id: 0, cpus, distances: vec![LOCAL] }];
    }
    nodes
}

fn nics(class: &Path, kind: NicKind) -> Vec<Nic> {
    let entries = read_dir(class).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    // Interfaces without a device (loopback, bridges, tunnels) are near nothing; RDMA in software has none and is a NIC all the same.
    let is_nic = |home: &PathBuf| kind != NicKind::Net || home.join("device").exists();
    let homes = names.into_iter().map(|name| (class.join(&name), name)).filter(|(home, _)| is_nic(home));
    homes
        .map(|(home, name)| {
            let (nodes, pci) = locality(&home.join("device"));
            let (up, link_mbit) = (is_up(&home, kind), link_mbit(&home, kind));
            Nic { nodes, up, link_mbit, pci, ..Nic::named(&name, kind) }
        })
        .collect()
}

/// The node and the PCI address of a device, or of what it hangs on: a virtual device has neither itself.
fn locality(device: &Path) -> (Vec<u32>, Option<String>) {
    let device = device.canonicalize().unwrap_or_else(|_| device.into());
    let (mut nodes, mut pci) = (Vec::new(), None);
    for part in device.ancestors().take_while(|part| part.file_name().is_some_and(|name| name != "devices")) {
        if pci.is_none() {
            pci =
                part.file_name().and_then(|name| name.to_str()).filter(|name| is_pci_address(name)).map(str::to_owned);
        }
        // The kernel writes -1 where the firmware does not say.
        if let Ok(node) = word(&part.join("numa_node")).parse() {
            nodes.push(node);
            break;
        }
    }
    (nodes, pci)
}

/// `0000:c3:00.0`: domain, bus, device, function.
fn is_pci_address(name: &str) -> bool {
    let hex = |text: &str, digits: std::ops::RangeInclusive<usize>| {
        digits.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let Some((front, function)) = name.split_once('.') else { return false };
    let parts: Vec<&str> = front.split(':').collect();
    matches!(parts[..], [domain, bus, device] if hex(domain, 4..=8) && hex(bus, 2..=2) && hex(device, 2..=2))
        && hex(function, 1..=1)
}

fn is_up(home: &Path, kind: NicKind) -> bool {
    match kind {
        // Its link is told elsewhere, and by names that differ between drivers.
        NicKind::Cxi => true,
        NicKind::Infiniband => {
            let ports = read_dir(home.join("ports")).into_iter().flatten().flatten();
            let mut states = ports.map(|port| word(&port.path().join("state"))).peekable();
            states.peek().is_none() || states.any(|state| state.contains("ACTIVE"))
        }
        NicKind::Net => !word(&home.join("operstate")).ends_with("down"),
    }
}

/// What the fastest port moves. A Slingshot device is as fast as the network interface beside it.
fn link_mbit(home: &Path, kind: NicKind) -> Option<u32> {
    let entries = |path: PathBuf| read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    // The kernel writes -1 where there is no link.
    let speed = |interface: &Path| word(&interface.join("speed")).parse().ok().filter(|&mbit| mbit > 0);
    match kind {
        NicKind::Net => speed(home),
        NicKind::Cxi => entries(home.join("device/net")).filter_map(|interface| speed(&interface)).max(),
        // `100 Gb/sec (4X EDR)`; a port that is down tells the rate that it would begin with.
        NicKind::Infiniband => {
            let rate = |port: PathBuf| {
                let active = word(&port.join("state")).contains("ACTIVE");
                let gbit = word(&port.join("rate")).split(' ').next()?.parse::<f64>().ok();
                gbit.filter(|gbit| active && *gbit > 0.0).map(|gbit| (gbit * 1000.0) as u32)
            };
            entries(home.join("ports")).filter_map(rate).max()
        }
    }
}

/// What a small file says, or nothing.
fn word(path: &Path) -> String {
    read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// The kernel's lists: `0-3,8`. What is malformed is left out.
fn numbers(list: &str) -> Vec<u32> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        (first <= last && last < NUMBERS_MAX).then_some(first..=last)
    };
    let mut numbers: Vec<u32> = list.split(',').filter_map(range).flatten().collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

#[cfg(test)]
mod tests {
    //! Goal: the kernel's words are read as meant, malformed ones as nothing.

    use super::*;

    #[test]
    fn lists_of_numbers() {
        assert_eq!(numbers("0-2,5"), [0, 1, 2, 5]);
        assert_eq!(numbers("3,1-2,2\n"), [1, 2, 3]);
        for none in ["", "-1", "a-b", "5-3", "0-4294967295"] {
            assert!(numbers(none).is_empty(), "{none}");
        }
    }

    #[test]
    fn pci_addresses() {
        assert!(is_pci_address("0000:c3:00.0") && is_pci_address("10000:01:1f.7"));
        for other in ["pci0000:00", "virtio2", "0000:c3:00", "c3:00.0", "0000:c3:00.00", ""] {
            assert!(!is_pci_address(other), "{other}");
        }
    }
}
