//! The LogGP parameters in a document of `rudder mpi`, for what computes with them. Every build reads them; only one with MPI measures.

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The version of the document's layout.
pub const FORMAT: u32 = 1;

/// The parameters, in µs, and `G` in ns a byte.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogGp {
    /// Whose they are.
    pub contender: String,
    /// Latency.
    #[serde(rename = "L_us")]
    pub latency_us: f64,
    /// Overhead.
    pub o_us: f64,
    /// Gap between messages.
    pub g_us: f64,
    /// Gap between bytes.
    #[serde(rename = "G_ns_per_byte")]
    pub gap_ns_per_byte: f64,
}

/// The parts of a document that this reads.
#[derive(Debug, Deserialize)]
struct Read {
    job: Job,
    loggp: Vec<LogGp>,
}

/// Where it was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Job {
    /// Number of ranks.
    pub ranks: u32,
    /// How many of them share the host of rank 0.
    pub ranks_on_host: u32,
}

/// The parameters of one contender, and where they were measured.
///
/// # Errors
/// The file cannot be read, is no document of this layout, is cut off, or has no parameters of that contender; or none is named, and it has those of
/// several.
pub fn read(path: &Path, contender: Option<&str>) -> Result<(LogGp, Job)> {
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let file = path.display();
    let text = std::fs::read(path).with_context(|| format!("reading {file}"))?;
    let foreign = || format!("{file} is no whole document of rudder mpi");
    let Version { format } = serde_json::from_slice(&text).with_context(foreign)?;
    ensure!(format == FORMAT, "{file} has layout {format}, this program reads layout {FORMAT}");
    let Read { job, loggp } = serde_json::from_slice(&text).with_context(foreign)?;
    let names = loggp.iter().map(|fit| fit.contender.as_str()).collect::<Vec<_>>().join(", ");
    ensure!(
        !loggp.is_empty(),
        "{file} has no LogGP parameters: they are fitted where latency, bandwidth and message-rate are measured together"
    );
    ensure!(contender.is_some() || loggp.len() == 1, "{file} has the LogGP parameters of several, name one of {names}");
    let mut fits = loggp.into_iter();
    let fit = fits.find(|fit| contender.is_none_or(|name| fit.contender == name));
    let named = contender.unwrap_or_default();
    Ok((fit.with_context(|| format!("{file} has no LogGP parameters of {named}, but of {names}"))?, job))
}

#[cfg(test)]
mod tests {
    //! Goal: what `rudder mpi` writes is read to the bit, and what it would not write is refused with what is missing. Method: a document of its
    //! types, as it is and spoilt in one way each.

    use super::super::document::sample;
    use super::*;
    use serde_json::{Value, json};

    fn refused(text: &str, contender: Option<&str>) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("get.json");
        std::fs::write(&path, text).unwrap();
        let told = format!("{:#}", read(&path, contender).unwrap_err());
        assert!(told.contains(path.to_str().unwrap()), "{told}");
        told
    }

    #[test]
    fn a_document_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("get.json");
        let mut document = sample();
        std::fs::write(&path, serde_json::to_string_pretty(&document).unwrap()).unwrap();
        for fit in &document.loggp {
            let (found, job) = read(&path, Some(&fit.contender)).unwrap();
            assert_eq!((&found, job), (fit, Job { ranks: 2, ranks_on_host: 1 }));
        }
        document.loggp.truncate(1);
        std::fs::write(&path, serde_json::to_string(&document).unwrap()).unwrap();
        assert_eq!(read(&path, None).unwrap().0, document.loggp[0]);
    }

    #[test]
    fn what_is_missing_is_told() {
        let document = serde_json::to_value(sample()).unwrap();
        let changed = |change: &dyn Fn(&mut Value)| {
            let mut document = document.clone();
            change(&mut document);
            document.to_string()
        };
        let whole = document.to_string();
        for (text, contender, told) in [
            (whole[..whole.len() / 2].to_owned(), Some("tcp"), "EOF"),
            (String::new(), Some("tcp"), "EOF"),
            (changed(&|it| it["format"] = json!(FORMAT + 1)), Some("tcp"), "layout 2, this program reads layout 1"),
            (changed(&|it| it["loggp"] = json!([])), Some("tcp"), "latency, bandwidth and message-rate"),
            (changed(&|it| drop(it.as_object_mut().unwrap().remove("loggp"))), Some("tcp"), "missing field `loggp`"),
            (changed(&|it| it["loggp"][1]["g_us"] = Value::Null), Some("tcp"), "invalid type: null"),
            (whole.clone(), Some("verbs"), "no LogGP parameters of verbs, but of MPI_Get plain, tcp"),
            (whole.clone(), None, "name one of MPI_Get plain, tcp"),
            ("{\"runs\": []}".to_owned(), None, "missing field `format`"),
        ] {
            let said = refused(&text, contender);
            assert!(said.contains(told), "{said} instead of {told}");
        }
    }
}
