//! How ranks learn where the others run, and who of them stands near.

use super::spec::TableSpec;
use crate::bootstrap::Bootstrap;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::id::PartitionId;
use crate::placement::{NicKind, Placement, Site};
use crate::transport::shm::host_key;
use crate::transport::{TransportConfig, VerbsSettings};
use serde::{Deserialize, Serialize};

/// Most ranks that share one buffer: a host's are split into groups of so many, because each has queues to each.
const SHARING_MAX: usize = 16;

/// Ranks of different versions refuse each other.
const PROTOCOL: u32 = 3;

/// First words of a rank: where it runs, and from rank 0 the secret that transports prove to each other.
#[derive(Serialize, Deserialize)]
struct Hello {
    protocol: u32,
    host: String,
    /// Whether it would share its buffer with its host's other ranks.
    shares: bool,
    /// The partition that it has of each table.
    partitions: Vec<PartitionId>,
    /// NICs that it could as well take.
    nics: Vec<String>,
    /// It exports rows in memory that has no file.
    unshared_rows: bool,
    secret: [u8; 32],
}

/// The ranks as this one sees them.
pub(super) struct Peers {
    /// By rank: whether it is on this host.
    pub on_host: Vec<bool>,
    /// Ranks of this host, with the same partitions, that share a buffer, this one included; one alone shares with nobody.
    pub sharing: Vec<usize>,
    /// By table: whether an earlier rank of this host serves the same partition through the same NIC.
    pub served: Vec<bool>,
}

/// Spreads what each rank says to all.
///
/// # Errors
/// A rank does not come in time, or says what cannot be read.
pub(super) fn gather<T: Serialize + for<'de> Deserialize<'de>>(
    config: &Config,
    bootstrap: &dyn Bootstrap,
    mine: &T,
) -> Result<Vec<T>> {
    let bad = |rank: usize, cause: String| Error::Bootstrap {
        rank: bootstrap.rank(),
        cause: format!("rank {rank} sent what cannot be read, is it of another version? ({cause})"),
    };
    let mine = serde_json::to_vec(mine).map_err(|error| bad(bootstrap.rank().index(), error.to_string()))?;
    let all = bootstrap.all_gather(&mine, config.collective_timeout)?;
    all.iter()
        .enumerate()
        .map(|(rank, bytes)| serde_json::from_slice(bytes).map_err(|error| bad(rank, error.to_string())))
        .collect()
}

/// Learns where the ranks run and the secret of the job, and takes a place among the ranks of the host.
pub(super) fn greet(
    config: &Config,
    bootstrap: &dyn Bootstrap,
    site: Site,
    specs: &[TableSpec],
    unshared_rows: bool,
) -> Result<(TransportConfig, Placement, Peers)> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret)
        .map_err(|error| Error::config(format!("the system gives no random bytes: {error}")))?;
    let mine = Hello {
        protocol: PROTOCOL,
        host: host(config),
        shares: config.share_buffer && config.map_host_rows,
        partitions: specs.iter().map(|spec| spec.partition).collect(),
        nics: site.nics().to_vec(),
        unshared_rows,
        secret,
    };
    let hellos = gather(config, bootstrap, &mine)?;
    if let Some((rank, hello)) = hellos.iter().enumerate().find(|(_, hello)| hello.protocol != PROTOCOL) {
        return Err(Error::Bootstrap {
            rank: bootstrap.rank(),
            cause: format!(
                "rank {rank} speaks protocol {}, this rank {PROTOCOL}: use one build of rudder",
                hello.protocol
            ),
        });
    }
    let peers = peers(&hellos, bootstrap.rank().index());
    let ranks_on_host = peers.on_host.iter().filter(|on_host| **on_host).count() as u32;
    let same = |hello: &&Hello| hello.host == mine.host && hello.nics == mine.nics;
    let turn = hellos[..bootstrap.rank().index()].iter().filter(same).count();
    let placement = site.place(turn, config.bind);
    let settings = TransportConfig {
        ranks_on_host,
        unshared_rows: hellos.iter().any(|hello| hello.unshared_rows),
        listen: config.listen,
        verbs: VerbsSettings { device: placement.nic_of(NicKind::Infiniband), gid: None },
        nic: placement.nic().cloned(),
        secret: hellos[0].secret,
        link: config.link,
        ..TransportConfig::new(bootstrap.rank(), bootstrap.size())
    };
    Ok((settings, placement, peers))
}

fn peers(hellos: &[Hello], me: usize) -> Peers {
    let mine = &hellos[me];
    let near = |other: &Hello| other.host == mine.host;
    // Where partitions differ, a row may be near to the rank that keeps its node and far from one that wants it.
    let sharing = |rank: &usize| {
        let other = &hellos[*rank];
        near(other) && other.shares && mine.shares && other.partitions == mine.partitions
    };
    let all: Vec<usize> = (0..hellos.len()).filter(sharing).collect();
    let group = all.chunks(SHARING_MAX).find(|group| group.contains(&me));
    let served = |table: usize| {
        let same = |other: &Hello| near(other) && other.nics == mine.nics;
        hellos[..me].iter().any(|other| same(other) && other.partitions.get(table) == mine.partitions.get(table))
    };
    Peers {
        on_host: hellos.iter().map(near).collect(),
        sharing: group.map_or_else(|| vec![me], <[usize]>::to_vec),
        served: (0..mine.partitions.len()).map(served).collect(),
    }
}

/// The machine's name, or the one that it is to go by, and what tells apart machines and network namespaces: ranks of one machine reach each
/// other's memory by a socket that is seen within a namespace only, so that those of different containers are on different hosts.
fn host(config: &Config) -> String {
    let own_name = || rustix::system::uname().nodename().to_string_lossy().into_owned();
    let name = config.host.clone().unwrap_or_else(own_name);
    format!("{name} {:016x}", u64::from_be_bytes(host_key()))
}
