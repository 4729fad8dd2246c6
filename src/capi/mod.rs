//! The C ABI: `native/include/rudder.h` is made of this module, one file a noun.
//!
//! **A handle is a number, not an address.** What a C program holds as `rudder_comm *` names a place in a bounded table of this process, with
//! a generation and the kind of thing it is. So a handle that was destroyed, is of another kind or never was one answers
//! [`RUDDER_HANDLE`](status::RUDDER_HANDLE), where an address could only be believed. It costs a look into a table under a lock: with the look at the
//! process below, a call adds some 0.15 us to what the engine does.
//! What was made of a comm ends with the comm, whatever the order in which a program or a garbage collector lets go of it.
//!
//! Every function looks at the process first, because a forked child may find any lock of its parent's held for ever; then it catches
//! panics; and it writes its results last. Node ids are `int64_t` in C and `u64` here: they are read in place, and a negative one, which is beyond
//! every table, is refused by the look-up that each id goes through anyway. A warm gather or announcement allocates nothing on its way through.

#![allow(non_camel_case_types, reason = "types have the names that they have in the header")]

mod announce;
mod argument;
mod comm;
mod config;
mod gather;
mod handle;
mod loan;
mod log;
mod registration;
mod request;
mod rows;
mod stats;
mod status;
mod table;
#[cfg(test)]
mod tests;
mod trace;
mod unique_id;
mod version;

pub use version::RUDDER_ABI_VERSION;
