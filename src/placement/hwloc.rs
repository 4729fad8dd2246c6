//! The host as hwloc sees it, where the library is linked: which cpus a node has, how far nodes are, which nodes a PCI device is near.

use super::{Node, Topology};
use hwlocality::object::TopologyObject;
use hwlocality::object::distance::DistancesKind;
use hwlocality::object::types::ObjectType;
use hwlocality::topology::builder::TypeFilter;

/// The same host with hwloc's nodes and distances, which it corrects for machines that describe themselves badly; as it was where hwloc
/// cannot be asked, and on one node, of which there is nothing more to learn.
pub(super) fn refine(host: Topology) -> Topology {
    if host.nodes.len() < 2 {
        return host;
    }
    let builder = hwlocality::Topology::builder().with_io_type_filter(TypeFilter::KeepImportant);
    match builder
        .map_err(|error| error.to_string())
        .and_then(|builder| builder.build().map_err(|error| error.to_string()))
    {
        Ok(known) => refine_by(host, &known),
        Err(cause) => {
            tracing::warn!(
                "hwloc cannot read this host ({cause}): distances are those of /sys; `lstopo` shows what is wrong"
            );
            host
        }
    }
}

fn refine_by(mut host: Topology, known: &hwlocality::Topology) -> Topology {
    let objects: Vec<&TopologyObject> = known.objects_with_type(ObjectType::NUMANode).collect();
    let latencies = DistancesKind::MEANS_LATENCY;
    let matrices = known.distances_with_type(Some(latencies), ObjectType::NUMANode).unwrap_or_default();
    let complete = matrices.iter().find(|matrix| matrix.num_objects() == objects.len());
    if let Some(matrix) = complete {
        let distance = |from: &TopologyObject, to: &TopologyObject| {
            let named = |object: Option<&TopologyObject>, wanted: &TopologyObject| {
                object.is_some_and(|it| it.os_index() == wanted.os_index())
            };
            let mut pairs = matrix.object_distances();
            pairs.find(|((a, b), _)| named(*a, from) && named(*b, to)).map_or(u32::MAX, |(_, value)| value as u32)
        };
        host.nodes = objects
            .iter()
            .map(|&object| Node {
                id: number(object),
                cpus: object
                    .cpuset()
                    .into_iter()
                    .flat_map(|set| set.iter_set().map(|cpu| usize::from(cpu) as u32).collect::<Vec<_>>())
                    .collect(),
                distances: objects.iter().map(|&to| distance(object, to)).collect(),
            })
            .collect();
        host.nodes.sort_by_key(|node| node.id);
    }
    for nic in &mut host.nics {
        let device = nic.pci.as_deref().and_then(|address| known.pci_device_by_bus_id_string(address).ok().flatten());
        let near = device.and_then(TopologyObject::first_non_io_ancestor).and_then(TopologyObject::nodeset);
        if let Some(near) = near {
            nic.nodes = near.iter_set().map(|node| usize::from(node) as u32).collect();
        }
    }
    host
}

fn number(node: &TopologyObject) -> u32 {
    node.os_index().map_or(0, |index| index as u32)
}

#[cfg(test)]
mod tests {
    //! Goal: hwloc's word replaces that of /sys, and where hwloc is silent /sys keeps it. Method: a recorded machine, read both ways.

    use super::super::tests::Machine;
    use super::*;
    use crate::placement::{Nic, NicKind};

    const XML: &str = include_str!("../../tests/data/topology/two-packages.xml");
    /// The same machine's own account: distances that say nothing, a NIC of which the firmware does not tell.
    const SYS: &str = "sys/devices/system/node/online: 0-1\n\
                       sys/devices/system/node/node0/cpulist: 0-1\n\
                       sys/devices/system/node/node0/distance: 10 20\n\
                       sys/devices/system/node/node1/cpulist: 2-3\n\
                       sys/devices/system/node/node1/distance: 20 10\n";

    #[test]
    fn distances_and_places_are_those_of_hwloc() {
        let mut host = Machine::new("hwloc", SYS).read();
        let nic = |name: &str, pci: Option<&str>| Nic {
            link_mbit: None,
            name: name.into(),
            kind: NicKind::Infiniband,
            nodes: vec![0],
            up: true,
            pci: pci.map(str::to_owned),
        };
        host.nics = vec![nic("mlx5_0", Some("0000:c3:00.0")), nic("mlx5_1", Some("0000:01:00.0")), nic("rxe0", None)];
        let builder = hwlocality::Topology::builder().with_io_type_filter(TypeFilter::KeepImportant).unwrap();
        let host = refine_by(host, &builder.from_xml(XML).unwrap().build().unwrap());
        assert_eq!(host.nodes[0], Node { id: 0, cpus: vec![0, 1], distances: vec![10, 32] });
        assert_eq!(host.nodes[1], Node { id: 1, cpus: vec![2, 3], distances: vec![32, 10] });
        let nodes: Vec<_> = host.nics.iter().map(|nic| nic.nodes.clone()).collect();
        assert_eq!(nodes, [vec![1], vec![0], vec![0]]);
    }
}
