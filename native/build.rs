//! Compiles the shims of the features that are on.

fn main() {
    println!("cargo::rerun-if-changed=shim");
    if std::env::var_os("CARGO_FEATURE_FABRIC").is_some() {
        cc::Build::new()
            .file("shim/fabric.c")
            .std("c11")
            .flag("-fvisibility=hidden")
            .warnings(true)
            .extra_warnings(true)
            .compile("rudder_fabric");
        println!("cargo::rustc-link-lib=dylib=dl");
    }
}
