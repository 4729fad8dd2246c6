//! What is shown: a table for people, a document for programs.

use super::peers::{Peers, Report};
use super::row::{Row, State};
use crate::record::Machine;
use serde::{Deserialize, Serialize};
use std::fmt::Write;
use tabled::builder::Builder;
use tabled::settings::object::Columns;
use tabled::settings::{Modify, Style, Width};

/// The document's format; a reader checks it.
const FORMAT: u32 = 1;
/// Widest cell of what was found, and of a remedy.
const CELL: usize = 60;
/// Failing pairs that the text names.
const PAIRS_NAMED: usize = 16;

/// A row, and whose machine it is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRow {
    /// The machine's name.
    pub host: String,
    /// What was found there.
    #[serde(flatten)]
    pub row: Row,
}

/// All that was found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Document {
    /// [`FORMAT`].
    pub format: u32,
    /// Whether a job of this environment can run.
    pub ready: bool,
    /// This machine.
    pub machine: Machine,
    /// Everything that was looked at here; of other machines what is not ok.
    pub rows: Vec<HostRow>,
    /// What the ranks found of each other, where they were asked.
    pub peers: Option<Peers>,
}

impl Document {
    /// A document of these rows.
    pub fn new(rows: Vec<HostRow>) -> Self {
        let ready = rows.iter().all(|row| row.row.state != State::Missing);
        Self { format: FORMAT, ready, machine: Machine::detect(), rows, peers: None }
    }

    /// Adds what the ranks found.
    pub fn add(&mut self, report: Report) {
        self.ready &= report.peers.is_well() && report.rows.iter().all(|row| row.row.state != State::Missing);
        self.rows.extend(report.rows);
        self.peers = Some(report.peers);
    }

    /// For programs.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_else(|cause| format!("{{\"error\": \"{cause}\"}}"))
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if !self.rows.is_empty() {
            text = self.table();
            text.push('\n');
        }
        if let Some(peers) = &self.peers {
            tell_peers(peers, &mut text);
        }
        text.push_str(if self.ready { "ready" } else { "not ready: see what is missing" });
        text
    }

    fn table(&self) -> String {
        let several = self.rows.iter().any(|row| row.host != self.rows[0].host);
        let mut table = Builder::new();
        let head = several.then_some("host").into_iter().chain(["what", "state", "found", "remedy"]);
        table.push_record(head);
        for HostRow { host, row } in &self.rows {
            let host = several.then_some(host.as_str()).into_iter();
            table.push_record(host.chain([&*row.what, row.state.words(), &*row.found, &*row.remedy]));
        }
        let mut table = table.build();
        table.with(Style::psql());
        let first = usize::from(several);
        for column in [first + 2, first + 3] {
            table.with(Modify::new(Columns::one(column)).with(Width::wrap(CELL).keep_words(true)));
        }
        table.to_string()
    }
}

fn tell_peers(peers: &Peers, text: &mut String) {
    let Peers { ranks, hosts, transport, pairs, slowest_us, failures, error } = peers;
    let over = transport.as_ref().map_or(String::new(), |name| format!(" over {name}"));
    let places = if hosts.len() == 1 { "one host".to_owned() } else { format!("{} hosts", hosts.len()) };
    let _ = write!(text, "peers: {ranks} ranks on {places}{over}");
    if let Some(cause) = error {
        let _ = writeln!(text, ": {cause}");
        return;
    }
    let _ =
        writeln!(text, ", {} of {pairs} pairs answer, the slowest in {slowest_us} us", pairs - failures.len() as u64);
    for failure in failures.iter().take(PAIRS_NAMED) {
        let (reader, owner) = (failure.reader, failure.owner);
        let (here, there) = (&failure.reader_host, &failure.owner_host);
        let _ = writeln!(text, "  rank {reader} ({here}) cannot read from rank {owner} ({there}): {}", failure.cause);
    }
    if failures.len() > PAIRS_NAMED {
        let _ = writeln!(text, "  and {} more pairs; --json has all", failures.len() - PAIRS_NAMED);
    }
}
