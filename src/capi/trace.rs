//! What a program tells the trace that a comm records.

use super::argument::{Sized64, read_sized};
use super::comm::{self, rudder_comm};
use super::status::{call, rudder_status};
use crate::trace::StepTimes;
use std::time::Duration;

/// How a training step was spent beside its wait for rows, in nanoseconds.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct rudder_step_times {
    /// sizeof(rudder_step_times); see rudder_config.
    pub struct_size: u64,
    /// Sampling and announcing.
    pub sample_ns: u64,
    /// Forward, backward and update; all of the step, where its parts are not known.
    pub compute_ns: u64,
    /// Averaging gradients, the wait for slower ranks included.
    pub allreduce_ns: u64,
}

// SAFETY: integers only.
unsafe impl Sized64 for rudder_step_times {
    const NAME: &'static str = "rudder_step_times";
    const LEAST: usize = 32;
}

/// Tells the trace, where the setting `trace` has one recorded, how the step of the minibatch that was waited for last was spent. Once a
/// minibatch, before the next one is waited for; without it, what lies between a wait and the next counts as computing, but for what came
/// before a gather that was started ahead, which counts as sampling. Does nothing where no trace is recorded.
///
/// Errors: RUDDER_ABI, RUDDER_NOT_STARTED, RUDDER_CLOSED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rudder_comm_mark_step(
    comm: *mut rudder_comm,
    times: *const rudder_step_times,
) -> rudder_status {
    call(|| {
        // SAFETY: what the header asks of the caller.
        let times = unsafe { read_sized(times)? };
        comm::find(comm)?.engine()?.mark_step(StepTimes {
            sample: Duration::from_nanos(times.sample_ns),
            compute: Duration::from_nanos(times.compute_ns),
            allreduce: Duration::from_nanos(times.allreduce_ns),
        });
        Ok(())
    })
}

/// Tells the trace, where the setting `trace` has one recorded, that an epoch ends with the minibatch that was waited for last: gathers
/// that were started after it are of the next. Does nothing where no trace is recorded.
///
/// Errors: RUDDER_NOT_STARTED, RUDDER_CLOSED.
#[unsafe(no_mangle)]
pub extern "C" fn rudder_comm_mark_epoch_end(comm: *mut rudder_comm) -> rudder_status {
    call(|| {
        comm::find(comm)?.engine()?.mark_epoch_end();
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    //! Goal: what a program marks is in the trace, unit for unit and in its place. Method: one rank, one gather, and the trace read back.
    use super::super::comm::{COMMS, Comm, rudder_comm_destroy, rudder_comm_shutdown};
    use super::super::status::RUDDER_DONE;
    use super::*;
    use crate::bootstrap::local;
    use crate::trace::{Event, Reader, file_of};
    use crate::{Config, Engine, NodeId, PartitionBook, PartitionId, Rank, TableId, TableSpec};
    use std::sync::Arc;

    #[test]
    fn marks_are_recorded() {
        let directory = tempfile::tempdir().unwrap();
        let prefix = directory.path().join("marked");
        let spec = TableSpec::new(TableId(0), PartitionBook::from_starts(vec![0, 3]).unwrap(), PartitionId(0), 4);
        let config = Config { trace: Some(prefix.clone()), ..Config::default() };
        let bootstrap = Arc::new(local::ranks(1).remove(0));
        let engine = Engine::builder(config, bootstrap).table(spec, |_| ()).start().unwrap();
        engine.gather(TableId(0), &[NodeId(1)], None, &mut [0; 4]).unwrap();
        let comm: *mut rudder_comm = COMMS.insert(Arc::new(Comm::started_as(engine))).unwrap().to_pointer();
        let size = size_of::<rudder_step_times>() as u64;
        let times = rudder_step_times { struct_size: size, sample_ns: 1, compute_ns: 2_000_000_000, allreduce_ns: 3 };
        // SAFETY: the struct is there.
        assert_eq!(unsafe { rudder_comm_mark_step(comm, &times) }, RUDDER_DONE);
        assert_eq!(rudder_comm_mark_epoch_end(comm), RUDDER_DONE);
        assert_eq!((rudder_comm_shutdown(comm), rudder_comm_destroy(comm)), (RUDDER_DONE, RUDDER_DONE));
        let events: Vec<Event> =
            Reader::open(&file_of(&prefix, Rank(0))).unwrap().collect::<crate::Result<_>>().unwrap();
        let [Event::Minibatch(minibatch), Event::EpochEnd] = &events[..] else { panic!("{events:?}") };
        let expected = StepTimes {
            sample: Duration::from_nanos(1),
            compute: Duration::from_secs(2),
            allreduce: Duration::from_nanos(3),
        };
        assert_eq!(minibatch.step, expected);
    }
}
