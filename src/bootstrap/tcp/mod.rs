//! A job over TCP: a unique id tells every rank where rank 0 listens, and carries the secret that they prove to each other.
//!
//! All traffic is a star through rank 0. It is small (addresses, tokens, gradients of a small model) and a star needs one connection a
//! rank, notices every death at one place, and can tell everybody the reason.

mod accept;
mod member;
mod proof;
mod root;
mod unique_id;
mod wire;

use super::{Bootstrap, RANKS_MAX, deadline_after};
use crate::error::{Error, Result};
use crate::id::Rank;
use member::Member;
use root::Root;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
pub use unique_id::UniqueId;

/// What both sides must speak.
const PROTOCOL: u16 = 1;
const MAGIC: [u8; 4] = *b"RDRB";

/// One rank of a job over TCP.
///
/// ```
/// use rudder::Rank;
/// use rudder::bootstrap::{Bootstrap, TcpBootstrap, UniqueId};
/// use std::time::Duration;
///
/// let id = UniqueId::create(None)?;
/// let words = id.to_hex(); // for the other ranks, by whatever the launcher has
/// let other = std::thread::spawn(move || -> rudder::Result<_> {
///     let job = TcpBootstrap::join(&words.parse()?, Rank(1), 2, Duration::from_secs(10))?;
///     job.all_gather(b"one", Duration::from_secs(10))
/// });
/// let job = TcpBootstrap::join(&id, Rank(0), 2, Duration::from_secs(10))?;
/// assert_eq!(job.all_gather(b"zero", Duration::from_secs(10))?, [b"zero".to_vec(), b"one".to_vec()]);
/// assert_eq!(other.join().unwrap()?[0], b"zero");
/// # Ok::<(), rudder::Error>(())
/// ```
pub struct TcpBootstrap {
    rank: Rank,
    size: u32,
    link: Mutex<Link>,
}

/// The joined job as this rank sees it, or why there is none any more.
struct Link {
    round: u64,
    side: Side,
    broken: Option<String>,
}

enum Side {
    Root(Root),
    Member(Member),
}

impl TcpBootstrap {
    /// Joins the job of `id` as one of `size` ranks, and returns once all have. Collective. Rank 0 joins in the process that created the
    /// id. A member hears the root's reason up to a second after `timeout`.
    ///
    /// # Errors
    /// Names the ranks that did not come; or says that this rank, its secret, its size (at most [`RANKS_MAX`]) or its protocol version was
    /// refused.
    pub fn join(id: &UniqueId, rank: Rank, size: u32, timeout: Duration) -> Result<Self> {
        if rank.0 >= size {
            return Err(Error::argument(format!("{rank} of a job of {size} ranks")));
        }
        if size > RANKS_MAX {
            return Err(Error::argument(format!("a job of {size} ranks: {RANKS_MAX} is the most")));
        }
        let deadline = deadline_after(timeout);
        let joined = if rank == Rank(0) {
            let listener = id.take_listener().ok_or_else(|| {
                "rank 0 joins once, in the process that created the unique id, which this is not".to_owned()
            });
            listener.and_then(|listener| accept::all(&listener, &id.secret(), size, deadline)).map(Side::Root)
        } else {
            Member::join(id, rank, size, deadline).map(Side::Member)
        };
        let side = joined.map_err(|cause| Error::Bootstrap { rank, cause })?;
        Ok(Self { rank, size, link: Mutex::new(Link { round: 0, side, broken: None }) })
    }
}

impl Bootstrap for TcpBootstrap {
    fn rank(&self) -> Rank {
        self.rank
    }

    fn size(&self) -> u32 {
        self.size
    }

    fn all_gather(&self, mine: &[u8], timeout: Duration) -> Result<Vec<Vec<u8>>> {
        if mine.len() > wire::CONTRIBUTION_BYTES_MAX {
            let limit = wire::CONTRIBUTION_BYTES_MAX;
            return Err(Error::argument(format!("{} bytes to all_gather, which takes {limit} a rank", mine.len())));
        }
        let deadline = deadline_after(timeout);
        let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        let Link { round, side, broken } = &mut *link;
        if let Some(cause) = broken {
            return Err(Error::Bootstrap { rank: self.rank, cause: cause.clone() });
        }
        *round += 1;
        let gathered = match side {
            Side::Root(root) => root.all_gather(*round, mine, deadline),
            Side::Member(member) => member.all_gather(*round, mine, deadline),
        };
        gathered.map_err(|cause| {
            // Half a frame may be under way: nothing after it could be understood.
            *broken = Some(cause.clone());
            Error::Bootstrap { rank: self.rank, cause }
        })
    }
}
