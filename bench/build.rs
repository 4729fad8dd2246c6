//! Compiles the C twin of the raw gets, by the MPI's own compiler.

fn main() {
    println!("cargo::rerun-if-changed=src/mpi/twin.c");
    println!("cargo::rerun-if-env-changed=MPICC");
    #[cfg(feature = "mpi")]
    cc::Build::new()
        .compiler(std::env::var_os("MPICC").unwrap_or_else(|| "mpicc".into()))
        .file("src/mpi/twin.c")
        .std("c11")
        .opt_level(2)
        .warnings(true)
        .extra_warnings(true)
        .compile("rudder_mpi_twin");
}
