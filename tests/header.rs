//! Goal: the header says what the library has. Method: it is made anew of the sources of the C ABI and compared with the one that is checked in;
//! `RUDDER_WRITE_HEADER=1` writes it instead.

use std::path::Path;

/// In the order in which a reader meets them.
const NOUNS: [&str; 12] = [
    "status",
    "version",
    "unique_id",
    "config",
    "comm",
    "table",
    "announce",
    "gather",
    "rows",
    "registration",
    "request",
    "trace",
];

fn generated(root: &Path) -> String {
    let config = cbindgen::Config::from_file(root.join("native/cbindgen.toml")).expect("the configuration is good");
    let mut builder = cbindgen::Builder::new().with_config(config);
    for noun in NOUNS.into_iter().chain(["stats"]) {
        builder = builder.with_src(root.join(format!("src/capi/{noun}.rs")));
    }
    let mut header = Vec::new();
    builder.generate().expect("the sources are read").write(&mut header);
    String::from_utf8(header).expect("the header is text")
}

#[test]
fn the_header_is_that_of_the_sources() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = root.join("native/include/rudder.h");
    let generated = generated(root);
    if std::env::var_os("RUDDER_WRITE_HEADER").is_some() {
        std::fs::write(&path, generated).expect("the header is written");
        return;
    }
    let there = std::fs::read_to_string(&path).expect("the header is there");
    assert!(
        there == generated,
        "{} is not that of src/capi: RUDDER_WRITE_HEADER=1 cargo test --test header",
        path.display()
    );
}
