//! Settings as people write them in a document: the words that the `RUDDER_*` variables take, beside the full form of a type.

use super::{Bind, BufferSize, MetricsAddress, bytes, quantity};
use crate::buffer::PolicyConfig;
use crate::controller::ControllerConfig;
use crate::error::{Error, Result};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::time::Duration;

/// Reads words by `parse`; anything else, or words that are a full form, as the type has it.
fn read<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    document: D,
    parse: impl Fn(&str) -> Result<T>,
) -> Result<T, D::Error> {
    let words = match Value::deserialize(document)? {
        Value::String(words) => words,
        Value::Number(number) => number.to_string(),
        full => return serde_json::from_value(full).map_err(D::Error::custom),
    };
    let full = || serde_json::from_value(Value::String(words.clone())).ok();
    parse(&words).or_else(|cause| full().ok_or(cause)).map_err(D::Error::custom)
}

pub(super) fn buffer<'de, D: Deserializer<'de>>(document: D) -> Result<BufferSize, D::Error> {
    read(document, str::parse)
}

pub(super) fn bind<'de, D: Deserializer<'de>>(document: D) -> Result<Bind, D::Error> {
    read(document, str::parse)
}

pub(super) fn policy<'de, D: Deserializer<'de>>(document: D) -> Result<PolicyConfig, D::Error> {
    read(document, PolicyConfig::named)
}

pub(super) fn controller<'de, D: Deserializer<'de>>(document: D) -> Result<ControllerConfig, D::Error> {
    read(document, str::parse)
}

pub(super) fn bytes_max<'de, D: Deserializer<'de>>(document: D) -> Result<Option<u64>, D::Error> {
    read(document, |words| match words.parse() {
        Ok(bytes) => Ok(Some(bytes)),
        Err(_) => bytes_of(words).map(Some),
    })
}

pub(super) fn metrics<'de, D: Deserializer<'de>>(document: D) -> Result<Option<MetricsAddress>, D::Error> {
    read(document, |words| words.parse().map(Some))
}

pub(crate) fn seconds<'de, D: Deserializer<'de>>(document: D) -> Result<Duration, D::Error> {
    read(document, seconds_of)
}

/// Bytes with their unit.
pub(super) fn bytes_of(words: &str) -> Result<u64> {
    let wrong = || Error::config(format!("`{words}`: expected bytes, such as `64MiB`"));
    quantity(words).and_then(bytes).ok_or_else(wrong)
}

pub(super) fn seconds_of(words: &str) -> Result<Duration> {
    match words.parse::<f64>().map(Duration::try_from_secs_f64) {
        Ok(Ok(seconds)) => Ok(seconds),
        _ => Err(Error::config(format!("`{words}`: expected seconds, such as `30` or `0.5`"))),
    }
}

#[cfg(test)]
mod tests {
    //! Goal: documents read as people write them, as well as those that the library writes. Method: both, and what is neither.
    use crate::buffer::{LfuConfig, PolicyConfig};
    use crate::config::{Bind, BufferSize, Config};
    use crate::controller::ControllerConfig;
    use std::time::Duration;

    fn read(document: &str) -> Result<Config, String> {
        serde_json::from_str(document).map_err(|cause| cause.to_string())
    }

    #[test]
    fn words_will_do() {
        let config = read(
            r#"{"buffer": "25%", "policy": "window", "controller": "periodic:8", "bind": "off", "gather_timeout": 30,
                "backoff": 0.5, "collective_timeout": "7", "pinned_bytes_max": "2GiB", "transport": "tcp",
                "listen": "10.0.0.7", "link": "1gbit,50us", "controller_bounds": {"decision_deadline": 2}}"#,
        )
        .unwrap();
        assert_eq!((config.buffer, config.bind), (BufferSize::Halo(0.25), Bind::Off));
        assert_eq!(config.policy, PolicyConfig::Window(LfuConfig::default()));
        assert_eq!(config.controller, ControllerConfig::Periodic { delta: 8 });
        let times = (config.gather_timeout, config.backoff, config.collective_timeout);
        assert_eq!(times, (Duration::from_secs(30), Duration::from_millis(500), Duration::from_secs(7)));
        assert_eq!(config.pinned_bytes_max, Some(2 << 30));
        assert_eq!(config.controller_bounds.decision_deadline, Duration::from_secs(2));
        let metrics =
            |words: &str| read(&format!(r#"{{"metrics": {words}}}"#)).unwrap().metrics.map(|at| at.0.to_string());
        assert_eq!(metrics(r#""0.0.0.0:9400""#).as_deref(), Some("0.0.0.0:9400"));
        assert_eq!(metrics("9400").as_deref(), Some("127.0.0.1:9400"), "loopback unless an address is given");
        assert_eq!(metrics("null"), None);
        assert_eq!(read(r#"{"buffer": 0.5}"#).unwrap().buffer, BufferSize::Halo(0.5));
        assert_eq!(read(r#"{"pinned_bytes_max": 4096}"#).unwrap().pinned_bytes_max, Some(4096));
        assert_eq!(read(r#"{"pinned_bytes_max": null}"#).unwrap().pinned_bytes_max, None);
    }

    #[test]
    fn full_forms_are_read_back() {
        let policy = PolicyConfig::Lfu(LfuConfig { half_life: 9, ..LfuConfig::default() });
        let buffer = BufferSize::Bytes(77);
        let config = Config { policy: policy.clone(), buffer, pinned_bytes_max: Some(5), ..Config::default() };
        let again = read(&serde_json::to_string(&config).unwrap()).unwrap();
        assert_eq!(format!("{again:?}"), format!("{config:?}"));
        assert_eq!(read(r#"{"policy": {"name": "lfu", "half_life": 9}}"#).unwrap().policy, policy);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (document, words) in [
            (r#"{"bufer": 1}"#, "unknown field `bufer`"),
            (r#"{"buffer": "many"}"#, "buffer size `many`"),
            (r#"{"policy": "best"}"#, "policy \"best\" is unknown"),
            (r#"{"policy": {"name": "lfu", "halflife": 9}}"#, "unknown field `halflife`"),
            (r#"{"controller": "periodic:x"}"#, "periodic:x"),
            (r#"{"gather_timeout": -1}"#, "expected seconds"),
            (r#"{"gather_timeout": "soon"}"#, "`soon`: expected seconds"),
            (r#"{"pinned_bytes_max": "2 apples"}"#, "expected bytes"),
            (r#"{"metrics": "everywhere"}"#, "`everywhere`: expected an address and a port"),
            (r#"{"tickets": "#, "EOF"),
        ] {
            let cause = read(document).unwrap_err();
            assert!(cause.contains(words), "{document}: {cause}");
        }
    }
}
