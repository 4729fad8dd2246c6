//! What a network costs, in the terms of LogGP (Alexandrov et al., SPAA 1995).

use crate::mpi::fitted::{self, LogGp};
use anyhow::{Context, Result, bail, ensure};
use rudder::transport::hook::Link;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// A NIC and the way from it to any other.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Network {
    /// L and both o: seconds from asking for a row to its first byte.
    pub latency_s: f64,
    /// g: seconds of a NIC between two messages, which are rows where rows are read one by one.
    pub gap_s: f64,
    /// G: seconds a byte.
    pub byte_s: f64,
}

/// A read of 8 bytes takes 2.7 us, reads of 64 KiB come at 21.5 GB/s, and there are at most 13.1 million reads a second: the vendor's
/// published figures for a NIC of Slingshot-11.
const SLINGSHOT: Network = Network { latency_s: 2.7e-6, gap_s: 1.0 / 13.1e6, byte_s: 1.0 / 21.5e9 };

impl Network {
    /// Itself, where its numbers can be those of a network.
    fn checked(self) -> Result<Self> {
        for (name, number) in [("latency", self.latency_s), ("g", self.gap_s), ("G", self.byte_s)] {
            ensure!((0.0..=1.0).contains(&number), "network: {name} = {number:e} is not from 0 to 1 second");
        }
        ensure!(self.byte_s > 0.0 || self.gap_s > 0.0, "network: rows cost nothing on it");
        Ok(self)
    }

    /// Seconds that a NIC takes for so many rows.
    pub fn carrying(&self, rows: f64, row_bytes: f64) -> f64 {
        rows * self.gap_s.max(row_bytes * self.byte_s)
    }

    /// The same NIC, shared by so many ranks that all use it at once.
    pub fn shared(self, ranks: f64) -> Self {
        Self { gap_s: self.gap_s * ranks, byte_s: self.byte_s * ranks, ..self }
    }

    /// Seconds of averaging so many bytes over all ranks: reduce-scatter and all-gather by halves (Rabenseifner, 2004).
    pub fn allreduce(&self, ranks: f64, bytes: f64) -> f64 {
        if bytes == 0.0 || ranks < 2.0 {
            return 0.0;
        }
        2.0 * ranks.log2().ceil() * self.latency_s + 2.0 * bytes * (ranks - 1.0) / ranks * self.byte_s
    }

    /// As the simulator has it, which knows no gap.
    pub fn link(&self) -> Link {
        let latency = Duration::from_secs_f64(self.latency_s);
        Link { bytes_per_second: (self.byte_s > 0.0).then(|| (1.0 / self.byte_s).round() as u64), latency }
    }
}

impl From<Link> for Network {
    fn from(link: Link) -> Self {
        let byte_s = link.bytes_per_second.map_or(0.0, |rate| 1.0 / rate as f64);
        Self { latency_s: link.latency.as_secs_f64(), gap_s: 0.0, byte_s }
    }
}

impl TryFrom<&LogGp> for Network {
    type Error = anyhow::Error;

    /// A get goes there and back, with an overhead at each end.
    fn try_from(fit: &LogGp) -> Result<Self> {
        Self {
            latency_s: 2e-6 * (fit.latency_us + fit.o_us),
            gap_s: 1e-6 * fit.g_us,
            byte_s: 1e-9 * fit.gap_ns_per_byte,
        }
        .checked()
    }
}

/// Which network: the argument.
#[derive(Clone, Debug)]
pub enum NetworkSpec {
    /// This one.
    Given(Network),
    /// As `rudder mpi` has fitted it to a contender, which need not be named where there is one only.
    Fitted { file: PathBuf, contender: Option<String> },
}

impl NetworkSpec {
    /// What it costs, and where that is from, if it was measured.
    ///
    /// # Errors
    /// A document cannot be read or has no parameters that make sense.
    pub fn load(&self) -> Result<(Network, Option<String>)> {
        match self {
            Self::Given(network) => Ok((*network, None)),
            Self::Fitted { file, contender } => {
                let (fit, job) = fitted::read(file, contender.as_deref())?;
                let (file, contender) = (file.display(), &fit.contender);
                let network = Network::try_from(&fit).with_context(|| {
                    format!("{file}: what was fitted to {contender} is no network, measure with more samples")
                })?;
                let within = if job.ranks_on_host == job.ranks { ", all on one host: this is no NIC" } else { "" };
                Ok((
                    network,
                    Some(format!("The network is {contender} as {file} has it, between {} ranks{within}.", job.ranks)),
                ))
            }
        }
    }
}

impl FromStr for NetworkSpec {
    type Err = anyhow::Error;

    /// `slingshot`, `L:g:G` in seconds, `loggp:FILE[,CONTENDER]`, or a link.
    fn from_str(text: &str) -> Result<Self> {
        if text == "slingshot" {
            return Ok(Self::Given(SLINGSHOT));
        }
        if let Some(fitted) = text.strip_prefix("loggp:") {
            let (file, contender) = match fitted.rsplit_once(',') {
                Some((file, contender)) => (file, Some(contender.to_owned())),
                None => (fitted, None),
            };
            ensure!(!file.is_empty(), "network {text:?}: write loggp:FILE,CONTENDER with a document of rudder mpi");
            return Ok(Self::Fitted { file: file.into(), contender });
        }
        let numbers: Vec<&str> = text.split(':').collect();
        let network = match numbers[..] {
            [latency, gap, byte] => {
                let number = |name: &str, text: &str| -> Result<f64> {
                    text.parse().with_context(|| format!("network {text:?}: {name} in seconds"))
                };
                Network { latency_s: number("L", latency)?, gap_s: number("g", gap)?, byte_s: number("G", byte)? }
            }
            [_] => text.parse::<Link>().map(Network::from).with_context(|| format!("network {text:?}"))?,
            _ => bail!(
                "network {text:?}: write slingshot, RATE,LATENCY as 10gbit,20us, L:g:G in seconds, or loggp:FILE,CONTENDER"
            ),
        };
        network.checked().map(Self::Given)
    }
}

#[cfg(test)]
mod tests {
    //! Goal: a network costs what its numbers say. Method: figures worked out by hand.

    use super::*;
    use crate::mpi::sample;

    fn network(text: &str) -> Network {
        text.parse::<NetworkSpec>().unwrap().load().unwrap().0
    }

    #[test]
    fn a_network_is_a_name_a_link_or_three_numbers() {
        assert_eq!(network("slingshot"), SLINGSHOT);
        let link = network("8mbit,2ms");
        assert_eq!(link, Network { latency_s: 2e-3, gap_s: 0.0, byte_s: 1e-6 });
        assert_eq!(link.link(), "8mbit,2ms".parse().unwrap());
        let numbers = network("2e-6:1e-7:1e-10");
        assert_eq!(numbers, Network { latency_s: 2e-6, gap_s: 1e-7, byte_s: 1e-10 });
        for wrong in ["", "none", "1:2", "0:0:0", "2:0:1e-9", "-1e-6:0:1e-9", "a:b:c", "slingshot-12", "loggp:"] {
            assert!(wrong.parse::<NetworkSpec>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_network_is_what_rudder_mpi_has_fitted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("get.json");
        let mut document = sample();
        let write = |document: &_| std::fs::write(&path, serde_json::to_string(document).unwrap()).unwrap();
        let tcp: NetworkSpec = format!("loggp:{},tcp", path.display()).parse().unwrap();
        write(&document);
        let (network, from) = tcp.load().unwrap();
        // What the sample's sweeps were made of.
        for (found, meant) in [(network.latency_s, 60e-6), (network.gap_s, 1e-7), (network.byte_s, 2e-9)] {
            assert!((found / meant - 1.0).abs() < 0.01, "{found} for {meant}");
        }
        assert!(from.unwrap().ends_with("between 2 ranks."));
        document.job.ranks_on_host = 2;
        write(&document);
        assert!(tcp.load().unwrap().1.unwrap().ends_with("all on one host: this is no NIC."));
        document.loggp[1].g_us = -0.1;
        write(&document);
        let told = format!("{:#}", tcp.load().unwrap_err());
        assert!(told.contains("get.json") && told.contains("tcp") && told.contains("g = -1e-7"), "{told}");
    }

    #[test]
    fn short_rows_cost_the_gap_and_long_ones_their_bytes() {
        let network = Network { latency_s: 1e-6, gap_s: 1e-7, byte_s: 1e-10 };
        assert!((network.carrying(100.0, 8.0) - 1e-5).abs() < 1e-12);
        assert!((network.carrying(100.0, 4000.0) - 4e-5).abs() < 1e-12);
        assert!((network.shared(4.0).carrying(100.0, 4000.0) - 16e-5).abs() < 1e-12);
        assert_eq!(network.allreduce(1.0, 1e6), 0.0);
        assert!((network.allreduce(8.0, 1e6) - (6e-6 + 2e6 * 7.0 / 8.0 * 1e-10)).abs() < 1e-12);
    }
}
