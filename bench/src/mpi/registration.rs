//! What it costs to make memory readable to peers, and to take it back.
//!
//! Ours allocates a region, or registers memory that exists; MPI makes a window and frees it. A region's memory is touched when it is handed
//! over, a window's need not be, so that a plain touching of as much fresh memory is measured beside them.

use super::args::{Benchmark, MpiArgs};
use super::document::{Line, Origin};
use super::gathers::left_out;
use super::turns::Order;
use super::world::{Waiting, World, check};
use super::{Measured, ours};
use anyhow::Result;
use mpi::ffi;
use rudder::memory::{Access, Memory};
use rudder::transport::Transport;
use std::ffi::c_void;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use std::time::Instant;

/// Sizes of the sweep are powers of 16 apart: a window costs some MPIs a millisecond and more.
const STEP: usize = 4;

type Act<'a> = (String, Box<dyn FnMut() -> Result<()> + 'a>);

/// Measures it. Collective.
pub fn run(world: &World, args: &MpiArgs, measured: &mut Measured) -> Result<()> {
    measured.begin(Benchmark::Registration);
    let names: Vec<&String> =
        args.transports.iter().filter(|name| left_out(world, name).is_none() && *name != "mpi").collect();
    if names.len() < args.transports.len() {
        measured.note("registration: transport mpi is left out, since it takes windows of MPI, which are the baseline, and frees them at its end");
    }
    let mut transports = Vec::new();
    for name in names {
        let transport = ours::open(world, name, args.listen)?;
        transport.connect(&world.gather(&transport.address())?)?;
        transports.push(transport);
    }
    for bytes in args.message_size.each().step_by(STEP) {
        let existing = Arc::new(Memory::allocate(bytes)?);
        one_size(world, args, bytes, &transports, &existing, measured)?;
    }
    world.meet(Waiting::InMpi)
}

fn one_size(
    world: &World,
    args: &MpiArgs,
    bytes: usize,
    transports: &[Arc<dyn Transport>],
    existing: &Arc<Memory>,
    measured: &mut Measured,
) -> Result<()> {
    let mut acts: Vec<Act<'_>> = vec![
        ("MPI_Win_allocate".into(), Box::new(|| allocate_window(bytes))),
        ("MPI_Win_create".into(), Box::new(|| create_window(existing))),
        ("touch".into(), Box::new(|| Ok(Memory::allocate(bytes).map(drop)?))),
    ];
    let baselines = acts.len();
    for transport in transports {
        let name = transport.name();
        acts.push((
            format!("{name} allocate"),
            Box::new(|| Ok(transport.allocate(bytes, Access::RemoteRead).map(drop)?)),
        ));
        match register(&**transport, existing) {
            Ok(()) => acts.push((format!("{name} register"), Box::new(|| register(&**transport, existing)))),
            Err(cause) => measured.note(&format!("registration: {name} registers no such memory: {cause:#}")),
        }
    }
    let mut us = vec![Vec::new(); acts.len()];
    let mut order = Order::new(args.seed, acts.len());
    for turn in 0..(args.skip + args.iterations) as usize {
        for &at in order.next() {
            world.meet(Waiting::InMpi)?;
            let begun = Instant::now();
            acts[at].1()?;
            if turn >= args.skip as usize {
                us[at].push(begun.elapsed().as_secs_f64() * 1e6);
            }
        }
    }
    for of_act in &mut us {
        world.largest(of_act)?;
    }
    let beside: Vec<(&str, &[f64])> = acts.iter().zip(&us).take(baselines).map(|(act, us)| (&*act.0, &**us)).collect();
    let origin = Origin { benchmark: Benchmark::Registration, state: None, ranks: world.size, bytes, rows: 1 };
    acts.iter().zip(&us).for_each(|(act, us)| measured.add(Line::new(origin, &act.0, us, &beside)));
    Ok(())
}

fn register(transport: &dyn Transport, existing: &Arc<Memory>) -> Result<()> {
    let base = NonNull::new(existing.base()).expect("memory is never at address 0");
    // SAFETY: the memory lives as long as the region, which holds it, and nobody writes to it.
    let region =
        unsafe { transport.register(Memory::borrow(base, existing.bytes(), existing.clone()), Access::RemoteRead) };
    Ok(region.map(drop)?)
}

fn allocate_window(bytes: usize) -> Result<()> {
    let mut base: *mut u8 = null_mut();
    // SAFETY: all ranks call it in the same turn; nobody reads the window.
    unsafe {
        let mut window = ffi::RSMPI_WIN_NULL;
        let (world, address): (_, *mut c_void) = (ffi::RSMPI_COMM_WORLD, (&raw mut base).cast());
        let code = ffi::MPI_Win_allocate(bytes as ffi::MPI_Aint, 1, ffi::RSMPI_INFO_NULL, world, address, &mut window);
        check(code, "MPI_Win_allocate")?;
        check(ffi::MPI_Win_free(&mut window), "MPI_Win_free")
    }
}

fn create_window(existing: &Memory) -> Result<()> {
    // SAFETY: all ranks call it in the same turn; the memory outlives the window, which nobody reads.
    unsafe {
        let mut window = ffi::RSMPI_WIN_NULL;
        let (world, base) = (ffi::RSMPI_COMM_WORLD, existing.base().cast());
        let bytes = existing.bytes() as ffi::MPI_Aint;
        check(ffi::MPI_Win_create(base, bytes, 1, ffi::RSMPI_INFO_NULL, world, &mut window), "MPI_Win_create")?;
        check(ffi::MPI_Win_free(&mut window), "MPI_Win_free")
    }
}
