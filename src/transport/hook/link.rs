//! How fast a link is, in words.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// The rate and latency of a link.
///
/// ```
/// use rudder::transport::hook::Link;
/// let link: Link = "1gbit,50us".parse()?;
/// assert_eq!(link.bytes_per_second, Some(125_000_000));
/// assert_eq!(link.latency, std::time::Duration::from_micros(50));
/// # Ok::<(), rudder::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Link {
    /// Bytes a second; `None` is no limit.
    pub bytes_per_second: Option<u64>,
    /// From a get to its first byte.
    pub latency: Duration,
}

impl Link {
    /// Whether it changes anything.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// How long so many bytes take on it, once the first is there.
    pub fn carrying(&self, bytes: u64) -> Duration {
        self.bytes_per_second.map_or(Duration::ZERO, |rate| {
            Duration::from_nanos((u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1))) as u64)
        })
    }
}

const RATES: [(&str, f64); 4] = [("gbit", 1e9), ("mbit", 1e6), ("kbit", 1e3), ("bit", 1.0)];
// What is written out has the sign of micro, and must be read again.
const LATENCIES: [(&str, f64); 5] = [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0)];
/// A second: beyond it a latency is a mistake.
const LATENCY_MAX_S: f64 = 1.0;

impl TryFrom<String> for Link {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Link> for String {
    fn from(link: Link) -> Self {
        link.to_string()
    }
}

impl FromStr for Link {
    type Err = Error;

    /// Reads `none`, a rate (`10gbit`, `2.5mbit`), a latency (`50us`) or both (`1gbit,50us`).
    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::config(format!(
                "link '{text}': write 'none', a rate (10gbit, 100mbit, 64kbit), a latency of up to a second (50us, 1ms), or \
                 both (1gbit,50us)"
            ))
        };
        let (mut rate, mut latency) = (None, None);
        for part in text.split(',').map(str::trim).filter(|_| text.trim() != "none") {
            if let Some(bits) = measured(part, &RATES) {
                let bytes = bits / 8.0;
                if rate.replace(bytes as u64).is_some() || !(1.0..1e15).contains(&bytes) {
                    return Err(wrong());
                }
            } else {
                let seconds = measured(part, &LATENCIES).ok_or_else(wrong)?;
                if latency.replace(Duration::from_secs_f64(seconds)).is_some() || seconds > LATENCY_MAX_S {
                    return Err(wrong());
                }
            }
        }
        Ok(Self { bytes_per_second: rate, latency: latency.unwrap_or_default() })
    }
}

/// A number that ends in one of the units; finite, not negative and not beyond 10^15.
fn measured(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    units.iter().find_map(|(unit, scale)| {
        let digits = text.strip_suffix(unit)?;
        let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        let value = digits.parse::<f64>().ok().filter(|_| plain)? * scale;
        (value < 1e15).then_some(value)
    })
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.bytes_per_second, self.latency) {
            (None, Duration::ZERO) => write!(f, "none"),
            (None, latency) => write!(f, "{latency:?}"),
            (Some(rate), latency) => write!(f, "{}mbit,{latency:?}", rate as f64 * 8e-6),
        }
    }
}

#[cfg(test)]
mod tests {
    //! Goal: what users write is understood, and what they should not write is refused in words. Method: both, by example.
    use super::*;

    #[test]
    fn specifications_are_read() {
        for (text, bytes_per_second, latency_us) in [
            ("none", None, 0),
            ("10gbit", Some(1_250_000_000), 0),
            ("1gbit,50us", Some(125_000_000), 50),
            ("1ms, 100mbit", Some(12_500_000), 1000),
            ("2.5kbit,0us", Some(312), 0),
            ("20us", None, 20),
        ] {
            let latency = Duration::from_micros(latency_us);
            assert_eq!(text.parse::<Link>().unwrap(), Link { bytes_per_second, latency }, "{text}");
        }
        let link: Link = "1gbit,50us".parse().unwrap();
        assert_eq!(link.carrying(125_000), Duration::from_millis(1));
        assert!(!link.is_none() && "none".parse::<Link>().unwrap().is_none());
    }

    #[test]
    fn mistakes_are_refused() {
        for text in [
            "",
            "fast",
            "0gbit",
            "-1gbit",
            "1gbit,1gbit",
            "1us,1us",
            "1gbit,",
            "1e9bit",
            "infgbit",
            "2s",
            "none,1gbit",
            "us",
        ] {
            let cause = text.parse::<Link>().expect_err(text).to_string();
            assert!(cause.contains("1gbit,50us"), "{cause}");
        }
    }
}
