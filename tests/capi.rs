//! Goal: the C interface adds no allocation to a warm minibatch. Method: as in allocations.rs, by the functions that a C program calls.
//!
//! What they answer is the business of the programs under tests/capi/, which `make test-capi` runs.

#[path = "common/counting.rs"]
mod counting;

use counting::{ALLOCATIONS, COUNTED};
use std::ffi::{CStr, c_char, c_void};
use std::ptr::{null, null_mut};
use std::sync::Barrier;
use std::sync::atomic::Ordering;

// The functions are in the library; nothing of its Rust interface is used.
use rudder as _;

#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId([u8; 64]);

#[repr(C)]
struct Config {
    struct_size: u64,
    settings: *const c_char,
}

#[repr(C)]
struct TableSpec {
    struct_size: u64,
    id: u32,
    partition: u32,
    partitions: u32,
    starts: *const i64,
    row_bytes: u64,
    version: u64,
    rows: *const c_void,
    bytes: u64,
    path: *const c_char,
    halo: *const i64,
    degree: *const u32,
    halo_nodes: u64,
    edges: u64,
}

type Handle = *mut c_void;

unsafe extern "C" {
    fn rudder_last_error() -> *const c_char;
    fn rudder_unique_id_create(listen: *const c_char, id: *mut UniqueId) -> i32;
    fn rudder_comm_create(id: *const UniqueId, ranks: u32, rank: u32, config: *const Config, comm: *mut Handle) -> i32;
    fn rudder_comm_start(comm: Handle) -> i32;
    fn rudder_comm_shutdown(comm: Handle) -> i32;
    fn rudder_comm_destroy(comm: Handle) -> i32;
    fn rudder_table_create(comm: Handle, spec: *const TableSpec, table: *mut Handle) -> i32;
    fn rudder_announce(
        comm: Handle,
        stream: u32,
        tables: *const Handle,
        tables_count: u32,
        nodes: *const i64,
        count: u64,
        ticket: *mut u64,
    ) -> i32;
    fn rudder_gather(table: Handle, nodes: *const i64, count: u64, ticket: u64, rows: *mut c_void, bytes: u64) -> i32;
    fn rudder_rows_create(table: Handle, count: u64, rows: *mut Handle) -> i32;
    fn rudder_rows_destroy(rows: Handle) -> i32;
    fn rudder_request_start(
        table: Handle,
        nodes: *const i64,
        count: u64,
        ticket: u64,
        rows: Handle,
        request: *mut Handle,
    ) -> i32;
    fn rudder_request_test(request: Handle) -> i32;
    fn rudder_request_wait(request: Handle) -> i32;
    fn rudder_request_destroy(request: Handle) -> i32;
}

const NODES: i64 = 2000;
const ROW_BYTES: u64 = 48;
const COUNT: u64 = 300;

fn done(status: i32) {
    // SAFETY: the text is the thread's own until its next failing call.
    let why = || unsafe { CStr::from_ptr(rudder_last_error()) }.to_string_lossy();
    assert!(status >= 0, "{status}: {}", why());
}

/// What a function writes a handle of.
fn made(call: impl FnOnce(*mut Handle) -> i32) -> Handle {
    let mut handle = null_mut();
    done(call(&mut handle));
    handle
}

/// Minibatches that repeat after 16: the warm-up has seen every one.
fn minibatch(nodes: &mut [i64], turn: u64) {
    for (at, node) in (0..).zip(nodes) {
        *node = ((at * at * 7 + (turn % 16) * 97 + at * 31) % NODES as u64) as i64;
    }
}

/// Announced, gathered, and started and waited for.
fn train(comm: Handle, table: Handle, nodes: &mut [i64], rows: &mut [u8], turns: u64) {
    for turn in 0..turns {
        minibatch(nodes, turn);
        let (mut ticket, count, bytes) = (0, nodes.len() as u64, rows.len() as u64);
        // SAFETY: lists and memory are as long as the calls are told, and nobody else has them.
        unsafe {
            done(rudder_announce(comm, 0, &table, 1, nodes.as_ptr(), count, &mut ticket));
            done(rudder_gather(table, nodes.as_ptr(), count, ticket, rows.as_mut_ptr().cast(), bytes));
            let pooled = made(|to| rudder_rows_create(table, count, to));
            let request = made(|to| rudder_request_start(table, nodes.as_ptr(), count, 0, pooled, to));
            done(rudder_request_test(request));
            done(rudder_request_wait(request));
            done(rudder_request_destroy(request));
            done(rudder_rows_destroy(pooled));
        }
    }
}

fn rank(id: UniqueId, rank: u32, settings: &CStr, both: &Barrier) {
    let starts = [0, NODES / 2, NODES];
    let halo: Vec<i64> = (0..NODES / 2).map(|node| node + if rank == 0 { NODES / 2 } else { 0 }).collect();
    let own = vec![rank as u8 + 1; (NODES / 2) as usize * ROW_BYTES as usize];
    let config = Config { struct_size: size_of::<Config>() as u64, settings: settings.as_ptr() };
    let spec = TableSpec {
        struct_size: size_of::<TableSpec>() as u64,
        id: 0,
        partition: rank,
        partitions: 2,
        starts: starts.as_ptr(),
        row_bytes: ROW_BYTES,
        version: 0,
        rows: own.as_ptr().cast(),
        bytes: own.len() as u64,
        path: null(),
        halo: halo.as_ptr(),
        degree: null(),
        halo_nodes: halo.len() as u64,
        edges: 0,
    };
    let (mut nodes, mut rows) = (vec![0; COUNT as usize], vec![0; (COUNT * ROW_BYTES) as usize]);
    // SAFETY: the structs and what they point to outlive the comm.
    unsafe {
        let comm = made(|to| rudder_comm_create(&id, 2, rank, &config, to));
        let table = made(|to| rudder_table_create(comm, &spec, to));
        done(rudder_comm_start(comm));
        train(comm, table, &mut nodes, &mut rows, 100);
        both.wait();
        COUNTED.store(true, Ordering::SeqCst);
        train(comm, table, &mut nodes, &mut rows, 50);
        COUNTED.store(false, Ordering::SeqCst);
        both.wait();
        done(rudder_comm_shutdown(comm));
        done(rudder_comm_destroy(comm));
    }
    for (node, row) in nodes.iter().zip(rows.chunks(ROW_BYTES as usize)) {
        let owner = u8::from(*node >= NODES / 2) + 1;
        assert!(row.iter().all(|&byte| byte == owner), "node {node}: {row:?}");
    }
}

#[test]
fn a_warm_minibatch_allocates_nothing_through_c() {
    let settings =
        cr#"{"buffer": "20%", "policy": "lfu", "map_host_rows": false, "rows_max": 1000, "observations": 64}"#;
    let mut id = UniqueId([0; 64]);
    // SAFETY: the id is there to be written.
    done(unsafe { rudder_unique_id_create(null(), &mut id) });
    let both = Barrier::new(2);
    std::thread::scope(|scope| {
        for at in 0..2 {
            let both = &both;
            scope.spawn(move || rank(id, at, settings, both));
        }
    });
    assert_eq!(ALLOCATIONS.swap(0, Ordering::SeqCst), 0, "allocations of 100 warm minibatches");
    COUNTED.store(true, Ordering::SeqCst);
    std::hint::black_box(vec![0u8; 100]);
    COUNTED.store(false, Ordering::SeqCst);
    assert!(ALLOCATIONS.load(Ordering::SeqCst) > 0, "the counter does not count");
}
