//! The libfabric of `tests/fake_libfabric/`, compiled once and loaded instead of the machine's.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The library's path.
pub fn path() -> &'static str {
    static PATH: OnceLock<String> = OnceLock::new();
    PATH.get_or_init(|| build().into_os_string().into_string().expect("the target directory's name is text"))
}

fn build() -> PathBuf {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_libfabric");
    let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join("libfake_fabric.so");
    let modified = |path: &Path| path.metadata().and_then(|metadata| metadata.modified()).ok();
    let newest = ["fake.c", "fake.map"].into_iter().filter_map(|name| modified(&sources.join(name))).max();
    if modified(&library) >= newest && newest.is_some() {
        return library;
    }
    // Other test processes may be at it too: each builds a file of its own, and the last to rename it wins.
    let mine = library.with_extension(std::process::id().to_string());
    let compiled = Command::new(std::env::var_os("CC").unwrap_or("cc".into()))
        .args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-g", "-shared", "-fPIC", "-pthread"])
        .arg(format!("-Wl,--version-script={}", sources.join("fake.map").display()))
        .arg(sources.join("fake.c"))
        .arg("-o")
        .arg(&mine)
        .status()
        .expect("a C compiler is there");
    assert!(compiled.success(), "the fake libfabric does not compile");
    std::fs::rename(&mine, &library).expect("the target directory is writable");
    library
}
