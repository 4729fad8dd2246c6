//! A process that has run out of file descriptors: a limit is the whole process's, so that each test has one of its own.

use rustix::fd::OwnedFd;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use std::process::Command;
use std::time::Duration;

const IN_CHILD: &str = "RUDDER_TEST_IN_A_PROCESS_OF_ITS_OWN";

/// Runs the test of this name once more in a process of its own, and there, with few descriptors, `body`.
pub fn in_a_process_of_its_own(test: &str, body: impl FnOnce()) {
    if std::env::var_os(IN_CHILD).is_some() {
        let limit = Rlimit { current: Some(128), maximum: getrlimit(Resource::Nofile).maximum };
        setrlimit(Resource::Nofile, limit).unwrap();
        return body();
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(IN_CHILD, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout).into_owned() + &String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success() && said.contains("1 passed"), "{said}");
}

/// Every descriptor that was left.
pub struct Shortage(#[expect(dead_code, reason = "held to be closed")] Vec<OwnedFd>);

impl Shortage {
    pub fn begin() -> Self {
        let take = || std::fs::File::open("/dev/null").ok().map(OwnedFd::from);
        Self(std::iter::from_fn(take).collect())
    }
}

/// Asserts that the process rests: a loop around an accept that fails would take the whole time.
pub fn assert_rests(during: Duration) {
    let cpu = || Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap();
    let before = cpu();
    std::thread::sleep(during);
    let spent = cpu() - before;
    assert!(spent < during / 3, "{spent:?} of CPU time in {during:?}");
}
