//! Goal: ranks of a job find each other, everybody else stays out, and what goes wrong is said, on both sides, in time.
//! Method: ranks as threads over loopback; strangers speak through sockets of their own.

use rudder::bootstrap::{Bootstrap, TcpBootstrap, UniqueId, local};
use rudder::{Error, Rank};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(400);

fn join(id: &UniqueId, rank: u32, size: u32, timeout: Duration) -> Result<TcpBootstrap, Error> {
    TcpBootstrap::join(id, Rank(rank), size, timeout)
}

/// Runs `body` on every rank of a joined job, each on a thread of its own.
fn job(size: u32, body: impl Fn(TcpBootstrap) + Sync) {
    let id = UniqueId::create(None).unwrap();
    thread::scope(|scope| {
        for rank in 0..size {
            let body = &body;
            scope.spawn(move || body(join(&id, rank, size, PATIENCE).expect("all ranks join")));
        }
    });
}

/// Joins ranks at once and gives what each got.
fn join_all(id: &UniqueId, ranks: &[(u32, u32)], timeout: Duration) -> Vec<Result<TcpBootstrap, Error>> {
    thread::scope(|scope| {
        let joining: Vec<_> =
            ranks.iter().map(|&(rank, size)| scope.spawn(move || join(id, rank, size, timeout))).collect();
        joining.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn cause(result: Result<TcpBootstrap, Error>) -> String {
    result.err().expect("it must not join").to_string()
}

fn contribution(rank: u32, round: u64) -> Vec<u8> {
    let length = match (u64::from(rank) + round) % 4 {
        0 => 0,
        1 => 1 + rank as usize,
        2 => 4097 * (rank as usize + 1),
        _ => 3_000_001,
    };
    (0..length).map(|at| (at as u64 * 31 + u64::from(rank) * 7 + round) as u8).collect()
}

fn rounds_are_right(bootstrap: &dyn Bootstrap) {
    for round in 0..6 {
        let all = bootstrap.all_gather(&contribution(bootstrap.rank().0, round), PATIENCE).unwrap();
        assert_eq!(all.len(), bootstrap.size() as usize);
        for (rank, bytes) in all.iter().enumerate() {
            assert!(*bytes == contribution(rank as u32, round), "round {round}: wrong bytes of rank {rank}");
        }
    }
    bootstrap.barrier(PATIENCE).unwrap();
}

#[test]
fn all_gather_is_right_for_one_to_five_ranks() {
    for size in 1..=5 {
        job(size, |bootstrap| rounds_are_right(&bootstrap));
        thread::scope(|scope| {
            for bootstrap in local::ranks(size) {
                scope.spawn(move || rounds_are_right(&bootstrap));
            }
        });
    }
}

#[test]
fn missing_ranks_are_named_on_every_side() {
    let id = UniqueId::create(None).unwrap();
    let began = Instant::now();
    for result in join_all(&id, &[(0, 5), (1, 5), (3, 5)], SHORT) {
        let cause = cause(result);
        assert!(cause.contains("ranks 2, 4 of 5 did not join"), "{cause}");
    }
    assert!(began.elapsed() < SHORT + Duration::from_secs(3), "{:?}", began.elapsed());
}

#[test]
fn a_rank_that_stays_away_from_a_round_is_named() {
    job(3, |bootstrap| {
        if bootstrap.rank() == Rank(2) {
            thread::sleep(2 * SHORT);
            return;
        }
        let cause = bootstrap.all_gather(b"here", SHORT).unwrap_err().to_string();
        assert!(cause.contains("rank 2"), "{cause}");
        let again = bootstrap.barrier(SHORT).unwrap_err().to_string();
        assert!(again.contains("rank 2"), "{again}");
    });
}

#[test]
fn a_rank_that_dies_between_rounds_is_named_at_once() {
    for dead in 0..3 {
        job(3, |bootstrap| {
            bootstrap.barrier(PATIENCE).unwrap();
            if bootstrap.rank() == Rank(dead) {
                return;
            }
            let began = Instant::now();
            // Large enough to fill the sockets of a root that gives up while this is under way.
            let cause = bootstrap.all_gather(&vec![1; 8 << 20], PATIENCE).unwrap_err().to_string();
            assert!(cause.contains(&format!("rank {dead}")) || cause.contains("rank 0"), "{cause}");
            assert!(began.elapsed() < PATIENCE / 2);
        });
    }
}

#[test]
fn a_wrong_secret_is_refused_and_the_job_goes_on() {
    let id = UniqueId::create(None).unwrap();
    let mut bytes = id.to_bytes();
    bytes[40] ^= 1;
    let forged = UniqueId::from_bytes(bytes).unwrap();
    thread::scope(|scope| {
        let root = scope.spawn(|| join(&id, 0, 2, PATIENCE));
        let cause = cause(join(&forged, 1, 2, PATIENCE));
        assert!(cause.contains("secret"), "{cause}");
        join(&id, 1, 2, PATIENCE).expect("the right secret is let in");
        root.join().unwrap().expect("a stranger does not disturb the root");
    });
}

#[test]
fn refusals_are_told_where_ranks_are_missing() {
    let id = UniqueId::create(None).unwrap();
    let mut bytes = id.to_bytes();
    bytes[40] ^= 1;
    let forged = UniqueId::from_bytes(bytes).unwrap();
    thread::scope(|scope| {
        let root = scope.spawn(|| join(&id, 0, 2, SHORT));
        cause(join(&forged, 1, 2, SHORT));
        let cause = cause(root.join().unwrap());
        assert!(cause.contains("rank 1 of 2 did not join") && cause.contains("secret"), "{cause}");
    });
}

#[test]
fn the_secret_is_not_shown_before_it_is_proven() {
    let id = UniqueId::create(None).unwrap();
    thread::scope(|scope| {
        let root = scope.spawn(|| join(&id, 0, 2, PATIENCE));
        let mut stranger = TcpStream::connect(id.address()).unwrap();
        stranger.set_read_timeout(Some(PATIENCE)).unwrap();
        stranger
            .write_all(&[&b"RDRB"[..], &1u16.to_le_bytes(), &[0; 32], &[1, 0, 0, 0, 2, 0, 0, 0], &[0; 32]].concat())
            .unwrap();
        let mut heard = Vec::new();
        // The refusal may end in a reset once the root has closed.
        let _ = stranger.read_to_end(&mut heard);
        let (greeting, refusal) = heard.split_at(4 + 2 + 32);
        assert!(!greeting.windows(8).any(|bytes| id.secret().starts_with(bytes)));
        assert_eq!(refusal.first(), Some(&2), "a refusal, not a proof: {refusal:?}");
        join(&id, 1, 2, PATIENCE).unwrap();
        root.join().unwrap().unwrap();
    });
}

#[test]
fn ranks_that_join_twice_are_named_on_every_side() {
    let id = UniqueId::create(None).unwrap();
    for result in join_all(&id, &[(0, 3), (1, 3), (1, 3)], PATIENCE) {
        let cause = cause(result);
        assert!(cause.contains("rank 1 joined twice"), "{cause}");
    }
}

#[test]
fn a_rank_of_another_size_is_named_on_every_side() {
    let id = UniqueId::create(None).unwrap();
    for result in join_all(&id, &[(0, 2), (1, 3)], PATIENCE) {
        let cause = cause(result);
        assert!(cause.contains("rank 1 speaks of a job of 3 ranks, rank 0 of 2"), "{cause}");
    }
}

#[test]
fn another_protocol_version_is_told_on_both_sides() {
    let id = UniqueId::create(None).unwrap();
    thread::scope(|scope| {
        let root = scope.spawn(|| join(&id, 0, 2, SHORT));
        let mut other = TcpStream::connect(id.address()).unwrap();
        other.write_all(&[&b"RDRB"[..], &9u16.to_le_bytes(), &[0; 32]].concat()).unwrap();
        let mut greeting = [0; 6];
        other.read_exact(&mut greeting).unwrap();
        assert_eq!(greeting, *b"RDRB\x01\x00");
        let cause = cause(root.join().unwrap());
        assert!(cause.contains("protocol version 9, this is version 1"), "{cause}");
    });
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut bytes = id.to_bytes();
    bytes[6..8].copy_from_slice(&listener.local_addr().unwrap().port().to_le_bytes());
    let elsewhere = UniqueId::from_bytes(bytes).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| listener.accept().unwrap().0.write_all(b"RDRB\x09\x00").unwrap());
        let cause = cause(join(&elsewhere, 1, 2, PATIENCE));
        assert!(cause.contains("the root speaks protocol version 9"), "{cause}");
    });
}

#[test]
fn a_root_without_the_secret_is_refused() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut bytes = UniqueId::create(None).unwrap().to_bytes();
    bytes[6..8].copy_from_slice(&listener.local_addr().unwrap().port().to_le_bytes());
    let id = UniqueId::from_bytes(bytes).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut peer = listener.accept().unwrap().0;
            let mut message = [0; 38];
            peer.read_exact(&mut message).unwrap();
            // Everything that it was sent comes back, the member's own proof included.
            peer.write_all(&message).unwrap();
            let mut claim = [0; 40];
            peer.read_exact(&mut claim).unwrap();
            let header = [&[1][..], &0u64.to_le_bytes(), &32u64.to_le_bytes()].concat();
            peer.write_all(&[&header[..], &claim[8..]].concat()).unwrap();
            let _ = peer.read(&mut message);
        });
        let cause = cause(join(&id, 1, 2, PATIENCE));
        assert!(cause.contains("cannot prove"), "{cause}");
    });
}

#[test]
fn garbage_does_not_disturb_the_job() {
    let id = UniqueId::create(None).unwrap();
    let garbage: Vec<Vec<u8>> = vec![
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        vec![0; 100_000],
        vec![0xFF; 37],
        b"RDRB".to_vec(),
        [&b"RDRB"[..], &1u16.to_le_bytes(), &[7; 32], &[0xFF; 40]].concat(),
        Vec::new(),
    ];
    thread::scope(|scope| {
        let root = scope.spawn(|| join(&id, 0, 2, PATIENCE));
        let mut silent = Vec::new();
        for _ in 0..20 {
            for bytes in &garbage {
                let mut stranger = TcpStream::connect(id.address()).unwrap();
                let _ = stranger.write_all(bytes);
                silent.push(stranger);
            }
        }
        let member = join(&id, 1, 2, PATIENCE).expect("a rank gets in beside 120 strangers");
        let root = root.join().unwrap().expect("the job begins");
        scope.spawn(move || rounds_are_right(&member));
        rounds_are_right(&root);
    });
}

#[test]
fn a_rank_that_waits_before_many_strangers_is_heard() {
    let id = UniqueId::create(None).unwrap();
    thread::scope(|scope| {
        let member = scope.spawn(|| join(&id, 1, 2, PATIENCE).map(drop));
        // The rank's hello lies in the backlog before the first of them, more than there are places for.
        thread::sleep(SHORT);
        let strangers: Vec<_> = (0..100).map(|_| TcpStream::connect(id.address()).unwrap()).collect();
        join(&id, 0, 2, PATIENCE).expect("the job begins");
        member.join().unwrap().expect("a rank gets in before 100 strangers");
        drop(strangers);
    });
}

#[test]
fn jobs_of_more_ranks_than_there_can_be_are_refused() {
    let id = UniqueId::create(None).unwrap();
    assert!(cause(join(&id, 0, u32::MAX, SHORT)).contains("65536 is the most"));
}

#[test]
fn unique_ids_travel_as_text_and_hide_their_secret() {
    let id = UniqueId::create(None).unwrap();
    assert!(id.address().ip().is_loopback());
    assert_eq!(id.to_hex().parse::<UniqueId>().unwrap(), id);
    let secret: String = id.secret().iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(id.to_hex().contains(&secret) && !format!("{id:?}").contains(&secret[..8]));
    for wrong in ["", "12", &id.to_hex()[1..], &"zz".repeat(64), &"00".repeat(64), &"é".repeat(64)] {
        wrong.parse::<UniqueId>().expect_err(wrong);
    }
    assert_ne!(UniqueId::create(None).unwrap(), id);
    UniqueId::create(Some("0.0.0.0:0".parse().unwrap())).expect_err("peers cannot reach 0.0.0.0");
    cause(join(&id, 2, 2, SHORT));
    join(&id, 0, 1, SHORT).unwrap();
    assert!(cause(join(&id, 0, 1, SHORT)).contains("in the process that created"));
}

#[test]
fn a_timeout_without_end_is_a_timeout() {
    assert!(local::ranks(1)[0].barrier(Duration::MAX).is_ok());
    let job = TcpBootstrap::join(&UniqueId::create(None).unwrap(), Rank(0), 1, Duration::MAX).unwrap();
    assert!(job.barrier(Duration::MAX).is_ok());
}
