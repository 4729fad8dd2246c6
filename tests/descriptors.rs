//! Goal: what accepts connections goes on when file descriptors run out: it neither ends nor spins, serves whom it serves, and takes in who
//! waits once there are descriptors again.
//! Method: a process with a low limit opens all that is left; a socket that was made before connects, so that there is somebody to accept.

mod shortage;

use rudder::bootstrap::{TcpBootstrap, UniqueId};
use rudder::memory::Access;
use rudder::transport::tcp::{JobSecret, TcpConfig, TcpTransport};
use rudder::transport::{
    BatchId, Channel, Destination, RemoteRegion, RowBatch, Transport, TransportConfig, Wait, open,
};
use rudder::{Rank, Result};
use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, connect, socket};
use shortage::{Shortage, assert_rests, in_a_process_of_its_own};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(600);

fn stranger(family: AddressFamily) -> OwnedFd {
    let kind = if family == AddressFamily::UNIX { SocketType::SEQPACKET } else { SocketType::STREAM };
    socket(family, kind, None).unwrap()
}

/// Gets row 0 of a region of 64 zero bytes.
fn get(channel: &mut dyn Channel, region: RemoteRegion) {
    let mut landing = [0xEE; 64];
    let destination = Destination { base: landing.as_mut_ptr(), stride: 64, places: 1 };
    let (rows, places) = (&[0], &[0]);
    let batch = RowBatch { id: BatchId(1), region, version: 0, row_bytes: 64, rows, places, destination };
    // SAFETY: the landing lives until the channel has reported the row, or the test has failed.
    assert_eq!(unsafe { channel.post(&batch) }.unwrap(), 1);
    let mut completions = Vec::new();
    while completions.is_empty() {
        channel.poll(&mut completions, Wait::For(PATIENCE)).unwrap();
    }
    assert_eq!((completions[0].status.clone(), landing), (Ok(()), [0; 64]));
}

#[test]
fn the_tcp_transport_goes_on() {
    in_a_process_of_its_own("the_tcp_transport_goes_on", || {
        let config = TcpConfig { connections_per_peer: 1, ..TcpConfig::new(JobSecret([1; 32])) };
        let owner = TcpTransport::new(config).unwrap();
        let address = owner.address();
        owner.connect(std::slice::from_ref(&address)).unwrap();
        let region = owner.allocate(64, Access::RemoteRead).unwrap();
        let imported = owner.import(Rank(0), region.token()).unwrap();
        let mut channel = owner.channel().unwrap();
        get(&mut *channel, imported);
        let stranger = stranger(AddressFamily::INET);
        let shortage = Shortage::begin();
        let port = u16::from_le_bytes([address[40], address[41]]);
        connect(&stranger, &SocketAddr::from((Ipv4Addr::LOCALHOST, port))).unwrap();
        assert_rests(SHORT);
        get(&mut *channel, imported);
        drop(shortage);
        get(&mut *owner.channel().unwrap(), imported);
    });
}

#[test]
fn shm_imports_go_on() {
    in_a_process_of_its_own("shm_imports_go_on", || {
        let owner = open("shm", &TransportConfig::new(Rank(0), 1)).unwrap();
        owner.connect(&[owner.address()]).unwrap();
        let region = owner.allocate(64, Access::RemoteRead).unwrap();
        let name: String = owner.address()[8..24].iter().map(|byte| format!("{byte:02x}")).collect();
        let stranger = stranger(AddressFamily::UNIX);
        let shortage = Shortage::begin();
        let address = SocketAddrUnix::new_abstract_name(format!("rudder-{name}").as_bytes()).unwrap();
        connect(&stranger, &address).unwrap();
        assert_rests(SHORT);
        drop(shortage);
        let imported = owner.import(Rank(0), region.token()).unwrap();
        get(&mut *owner.channel().unwrap(), imported);
    });
}

fn join(id: &UniqueId, rank: u32, timeout: Duration) -> Result<TcpBootstrap> {
    TcpBootstrap::join(id, Rank(rank), 2, timeout)
}

#[test]
fn the_tcp_bootstrap_goes_on() {
    in_a_process_of_its_own("the_tcp_bootstrap_goes_on", || {
        let id = UniqueId::create(None).unwrap();
        std::thread::scope(|scope| {
            let root = scope.spawn(|| join(&id, 0, PATIENCE).map(drop));
            let stranger = stranger(AddressFamily::INET);
            let shortage = Shortage::begin();
            connect(&stranger, &id.address()).unwrap();
            assert_rests(SHORT);
            drop(shortage);
            join(&id, 1, PATIENCE).unwrap();
            root.join().unwrap().unwrap();
        });
    });
}

#[test]
fn the_tcp_bootstrap_says_what_ranks_were_missing_for() {
    in_a_process_of_its_own("the_tcp_bootstrap_says_what_ranks_were_missing_for", || {
        let id = UniqueId::create(None).unwrap();
        let stranger = stranger(AddressFamily::INET);
        let _shortage = Shortage::begin();
        connect(&stranger, &id.address()).unwrap();
        let cause = join(&id, 0, SHORT).err().expect("rank 1 is missing").to_string();
        assert!(cause.contains("ulimit -n"), "{cause}");
    });
}
