//! How ranks that a launcher has started find each other: by a file that all of them see.
//!
//! Rank 0 leaves the job's unique id there, readable by its user alone, and takes it away once all have met.

use anyhow::{Context, Result, ensure};
use rudder::Rank;
use rudder::bootstrap::{Bootstrap, Environment, TcpBootstrap, UniqueId};
use std::fs::OpenOptions;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often a rank looks for the file.
const LOOK: Duration = Duration::from_millis(100);

/// The ranks of a launched job, once all have come. Rank 0 leaves the unique id in `file`, a new one that all ranks see; the listener is on `listen`.
///
/// # Errors
/// Rank 0 cannot leave the file, or ranks do not come within `patience`: the message names them.
pub fn meet(place: &Environment, file: &Path, listen: IpAddr, patience: Duration) -> Result<Arc<dyn Bootstrap>> {
    let until = Instant::now() + patience;
    let id = match place.rank {
        Rank(0) => {
            let id = UniqueId::create(Some(SocketAddr::new(listen, 0)))?;
            leave(file, &id.to_hex())?;
            id
        }
        _ => loop {
            if let Ok(text) = std::fs::read_to_string(file) {
                break text.parse()?;
            }
            ensure!(
                Instant::now() < until,
                "rank 0 left no unique id in {} within {patience:?}; do all ranks see that file?",
                file.display()
            );
            std::thread::sleep(LOOK);
        },
    };
    let joined = TcpBootstrap::join(&id, place.rank, place.size, patience);
    if place.rank == Rank(0) {
        std::fs::remove_file(file).with_context(|| format!("removing {}", file.display()))?;
    }
    Ok(Arc::new(joined?))
}

/// Writes the secret under another name first, so that nobody reads half of it.
fn leave(file: &Path, text: &str) -> Result<()> {
    let partial = file.with_extension("partial");
    let write = || -> std::io::Result<()> {
        let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
        out.write_all(text.as_bytes())?;
        std::fs::rename(&partial, file)
    };
    write().with_context(|| format!("leaving the unique id in {}", file.display()))
}
