//! One thing that the doctor looked at, and how well it stands.

use serde::{Deserialize, Serialize};

/// How well something stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Nothing to do.
    Ok,
    /// A job runs, and would run better.
    CouldBeBetter,
    /// A job of this environment cannot run.
    Missing,
}

impl State {
    /// In a table.
    pub fn words(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::CouldBeBetter => "could be better",
            Self::Missing => "missing",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// What was looked at.
    pub what: String,
    /// What there is.
    pub found: String,
    /// How well that stands.
    pub state: State,
    /// What to do; empty where nothing is.
    pub remedy: String,
}

impl Row {
    /// Something that will do.
    pub fn ok(what: &str, found: impl Into<String>) -> Self {
        Self { what: what.to_owned(), found: found.into(), state: State::Ok, remedy: String::new() }
    }

    /// Something that a job can live with.
    pub fn better(what: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { state: State::CouldBeBetter, remedy: remedy.into(), ..Self::ok(what, found) }
    }

    /// Something that a job cannot do without.
    pub fn missing(what: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { state: State::Missing, remedy: remedy.into(), ..Self::ok(what, found) }
    }
}
