//! How much memory can still be had.
//!
//! A memory file has no size limit of its own: asked for more than there is, the kernel does not refuse, it kills. So we ask first.

use std::fs::read_to_string;
use std::path::Path;

/// What is left, and by whose account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Available {
    pub bytes: u64,
    pub by: String,
}

/// Where a version of control groups keeps what.
struct Hierarchy {
    mounts: &'static [&'static str],
    limit: &'static str,
    usage: &'static str,
    /// Cached files, which the kernel gives up before it kills: fields of `memory.stat`.
    cached: [&'static str; 2],
}

const V1: Hierarchy = Hierarchy {
    mounts: &["sys/fs/cgroup/memory"],
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    cached: ["total_inactive_file", "total_active_file"],
};
const V2: Hierarchy = Hierarchy {
    mounts: &["sys/fs/cgroup", "sys/fs/cgroup/unified"],
    limit: "memory.max",
    usage: "memory.current",
    cached: ["inactive_file", "active_file"],
};

/// The least of what the machine and each control group above this process have left; `None` where the system does not say.
pub(super) fn available() -> Option<Available> {
    within(Path::new("/"))
}

fn within(root: &Path) -> Option<Available> {
    machine(root).into_iter().chain(control_groups(root)).min_by_key(|available| available.bytes)
}

fn machine(root: &Path) -> Option<Available> {
    let kilobytes = field(&read_to_string(root.join("proc/meminfo")).ok()?, "MemAvailable:")?;
    Some(Available { bytes: kilobytes.saturating_mul(1024), by: "the machine".into() })
}

fn control_groups(root: &Path) -> Vec<Available> {
    let own = read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut found = Vec::new();
    for line in own.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let hierarchy = match controllers {
            "" => V2,
            named if named.split(',').any(|name| name == "memory") => V1,
            _ => continue,
        };
        // Every ancestor's limit counts. Within a container the path may be the host's: then only the root of the mount is there.
        for group in Path::new(path.trim_start_matches('/')).ancestors() {
            let rooms = hierarchy.mounts.iter().filter_map(|mount| room(&root.join(mount).join(group), &hierarchy));
            found.extend(rooms);
        }
    }
    found
}

/// What a control group has left; `None` where it has no limit.
fn room(group: &Path, hierarchy: &Hierarchy) -> Option<Available> {
    let number = |name: &str| read_to_string(group.join(name)).ok()?.trim().parse::<u64>().ok();
    let limit = number(hierarchy.limit)?;
    let used = number(hierarchy.usage)?;
    let stat = read_to_string(group.join("memory.stat")).unwrap_or_default();
    let cached: u64 = hierarchy.cached.iter().filter_map(|name| field(&stat, name)).sum();
    let bytes = limit.saturating_sub(used.saturating_sub(cached));
    Some(Available { bytes, by: format!("the control group {}", group.display()) })
}

/// The number after `name` at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let mut words = text.lines().map(str::split_whitespace).find(|words| words.clone().next() == Some(name))?;
    words.nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    //! Goal: the tightest limit counts, whoever sets it. Method: trees of files such as the kernel shows them.
    use super::*;
    use std::path::PathBuf;

    /// A root directory with these files in it.
    struct Root(PathBuf);

    impl Root {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let root = std::env::temp_dir().join(format!("rudder-available-{}-{name}", std::process::id()));
            for (path, content) in files {
                let path = root.join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, content).unwrap();
            }
            Self(root)
        }

        fn available(&self) -> Option<(u64, String)> {
            within(&self.0).map(|Available { bytes, by }| (bytes, by))
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal: 2000 kB\nMemFree: 10 kB\nMemAvailable:    1000 kB\n");

    #[test]
    fn without_control_groups_the_machine_counts() {
        assert_eq!(Root::new("bare", &[MEMINFO]).available(), Some((1_024_000, "the machine".into())));
        assert_eq!(Root::new("empty", &[]).available(), None);
        let malformed = [("proc/meminfo", "MemAvailable: many kB"), ("proc/self/cgroup", "0\n::\n\nx:memory")];
        assert_eq!(Root::new("malformed", &malformed).available(), None);
    }

    #[test]
    fn the_tightest_ancestor_counts() {
        let files = [
            MEMINFO,
            ("proc/self/cgroup", "0::/job/step\n"),
            ("sys/fs/cgroup/job/step/memory.max", "max\n"),
            ("sys/fs/cgroup/job/step/memory.current", "10\n"),
            ("sys/fs/cgroup/job/memory.max", "5000\n"),
            ("sys/fs/cgroup/job/memory.current", "4500\n"),
            ("sys/fs/cgroup/job/memory.stat", "anon 1\ninactive_file 300\nactive_file 20\n"),
        ];
        let (bytes, by) = Root::new("v2", &files).available().unwrap();
        assert!(bytes == 820 && by.ends_with("cgroup/job"), "{bytes} by {by}");
    }

    #[test]
    fn a_container_sees_its_limit_at_the_root_of_the_mount() {
        let files = [
            MEMINFO,
            ("proc/self/cgroup", "3:cpu:/docker/1\n2:hugetlb,memory:/docker/1\n0::/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "700\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "900\n"),
            ("sys/fs/cgroup/memory/memory.stat", "inactive_file 400\ntotal_inactive_file 250\n"),
        ];
        assert_eq!(Root::new("v1", &files).available().unwrap().0, 50);
    }

    #[test]
    fn this_machine_says_what_it_has() {
        assert!(available().is_some_and(|available| available.bytes > 0));
    }
}
