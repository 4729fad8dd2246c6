//! Names the shared library as the loader knows it.

fn main() {
    // Programs ask for the version of the interface that they were built for: RUDDER_ABI_VERSION of src/capi/version.rs.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,librudder.so.1");
    println!("cargo::rerun-if-changed=build.rs");
}
