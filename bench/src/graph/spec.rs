//! Which graph: the argument that all commands share.

use super::{CLASSES_MAX, Graph, Prepared, attachment, debian, rmat, sbm, smallworld};
use anyhow::{Context, Error, Result, bail, ensure};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::{error, fmt};

const FORMS: &str = "debian | rmat:scale=15,degree=16,dim=602 | sbm:nodes=60000,degree=20,communities=64,dim=16 | ba:nodes=60000,degree=16,dim=16 | ws:nodes=60000,degree=16,rewired=10,dim=16 | DIR of a prepared graph";

/// A graph by name, by generator and parameters, or by the directory of a prepared one.
///
/// `degree` is the mean number of neighbours that a generator aims at, `dim` the number of feature columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GraphSpec {
    /// The Debian package graph that this binary carries.
    Debian,
    /// [`rmat`]: `2^scale` vertices before isolated ones are dropped.
    Rmat {
        /// Binary logarithm of the number of vertices.
        scale: u32,
        /// Mean degree.
        degree: usize,
        /// Feature columns.
        dim: usize,
    },
    /// [`sbm`].
    Sbm {
        /// Vertices before isolated ones are dropped.
        nodes: usize,
        /// Mean degree.
        degree: usize,
        /// Communities, which are the classes.
        communities: usize,
        /// Feature columns.
        dim: usize,
    },
    /// [`attachment`].
    Ba {
        /// Vertices before isolated ones are dropped.
        nodes: usize,
        /// Mean degree.
        degree: usize,
        /// Feature columns.
        dim: usize,
    },
    /// [`smallworld`].
    Ws {
        /// Vertices.
        nodes: usize,
        /// Mean degree.
        degree: usize,
        /// Of 100 edges, those that lead anywhere.
        rewired: usize,
        /// Feature columns.
        dim: usize,
    },
    /// A prepared graph.
    Directory(PathBuf),
}

impl GraphSpec {
    /// Make the graph; `seed` decides a generated one and does nothing to the others.
    ///
    /// # Errors
    /// The carried data is damaged, the directory is no prepared graph, or the parameters give no graph.
    pub fn load(&self, seed: u64) -> Result<Graph> {
        let name = self.to_string();
        match *self {
            Self::Debian => debian::load(),
            Self::Rmat { scale, degree, dim } => rmat::generate(name, scale, degree, dim, seed),
            Self::Sbm { nodes, degree, communities, dim } => {
                sbm::generate(name, sbm::Shape { nodes, degree, communities, width: dim }, seed)
            }
            Self::Ba { nodes, degree, dim } => attachment::generate(name, nodes, degree, dim, seed),
            Self::Ws { nodes, degree, rewired, dim } => {
                smallworld::generate(name, smallworld::Shape { nodes, degree, rewired, width: dim }, seed)
            }
            Self::Directory(ref path) => Prepared::open(path).and_then(|prepared| Arc::new(prepared).graph()),
        }
        .with_context(|| format!("graph {self}"))
    }

    /// The graph of so many ranks, each of which has as much of it as each of `of` ranks has of this one: nodes grow with them, communities too, and
    /// degrees stay.
    ///
    /// # Errors
    /// There is no such graph.
    pub fn grown(&self, ranks: u32, of: u32) -> Result<Self> {
        let times = |number: usize| {
            let grown = number * ranks as usize;
            grown.is_multiple_of(of as usize).then_some(grown / of as usize)
        };
        let grown = match *self {
            Self::Rmat { scale, degree, dim } => times(1 << scale)
                .filter(|nodes| nodes.is_power_of_two())
                .map(|nodes| Self::Rmat { scale: nodes.ilog2(), degree, dim }),
            Self::Sbm { nodes, degree, communities, dim } => times(nodes)
                .zip(times(communities))
                .map(|(nodes, communities)| Self::Sbm { nodes, degree, communities, dim }),
            Self::Ba { nodes, degree, dim } => times(nodes).map(|nodes| Self::Ba { nodes, degree, dim }),
            Self::Ws { nodes, degree, rewired, dim } => {
                times(nodes).map(|nodes| Self::Ws { nodes, degree, rewired, dim })
            }
            Self::Debian | Self::Directory(_) => {
                bail!("graph {self} is the size it is: only generated graphs grow with the ranks")
            }
        };
        let grown = grown.with_context(|| {
            format!("graph {self} of {of} ranks is none of {ranks}: sizes are whole, rmat's powers of 2")
        })?;
        // The bounds of what can be written hold for it, too.
        grown.to_string().parse()
    }
}

impl FromStr for GraphSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (kind, parameters) = text.split_once(':').unwrap_or((text, ""));
        let spec = match kind {
            "debian" => {
                ensure!(text == kind, "graph debian takes no parameters");
                Self::Debian
            }
            "rmat" => {
                let [scale, degree, dim] =
                    values(parameters, [("scale", 1, 28, Some(15)), DEGREE, ("dim", 1, 1 << 16, Some(602))])?;
                Self::Rmat { scale: scale as u32, degree, dim }
            }
            "sbm" => {
                let keys = [NODES, ("degree", 1, 1 << 12, Some(20)), ("communities", 1, CLASSES_MAX, Some(64)), DIM];
                let [nodes, degree, communities, dim] = values(parameters, keys)?;
                ensure!(communities <= nodes, "graph sbm: {communities} communities of {nodes} nodes");
                Self::Sbm { nodes, degree, communities, dim }
            }
            "ba" => {
                let [nodes, degree, dim] = values(parameters, [NODES, DEGREE, DIM])?;
                Self::Ba { nodes, degree, dim }
            }
            "ws" => {
                let keys = [NODES, DEGREE, ("rewired", 0, 100, Some(10)), DIM];
                let [nodes, degree, rewired, dim] = values(parameters, keys)?;
                Self::Ws { nodes, degree, rewired, dim }
            }
            _ if text.is_empty() => bail!("no graph named; allowed: {FORMS}"),
            _ if std::path::Path::new(text).is_dir() => Self::Directory(text.into()),
            _ => bail!("graph {text} is neither a known graph nor a directory; allowed: {FORMS}"),
        };
        Ok(spec)
    }
}

const NODES: Key<usize> = ("nodes", 2, 1 << 28, Some(60_000));
const DEGREE: Key<usize> = ("degree", 1, 1 << 12, Some(16));
const DIM: Key<usize> = ("dim", 1, 1 << 16, Some(16));

/// A parameter: its name, least, most and, where it may be left out, default value.
pub type Key<T> = (&'static str, T, T, Option<T>);

/// The values of `key=value,...`.
///
/// # Errors
/// A key is unknown, given twice, or missing without a default, or a value is not within its bounds.
pub fn values<T, const N: usize>(parameters: &str, keys: [Key<T>; N]) -> Result<[T; N]>
where
    T: Copy + PartialOrd + Default + FromStr<Err: error::Error + Send + Sync + 'static> + fmt::Display,
{
    let mut values = keys.map(|(.., default)| default.unwrap_or_default());
    let mut given = [false; N];
    for parameter in parameters.split(',').filter(|parameter| !parameter.is_empty()) {
        let (name, value) = parameter.split_once('=').with_context(|| format!("{parameter} is not key=value"))?;
        let Some(at) = keys.iter().position(|key| key.0 == name) else {
            bail!("unknown key {name}; allowed: {}", keys.map(|key| key.0).join(", "));
        };
        ensure!(!given[at], "{name} is given twice");
        let (_, least, most, _) = keys[at];
        let value = value.parse().with_context(|| format!("{name}={value} is not a number"))?;
        ensure!((least..=most).contains(&value), "{name}={value} is not within {least}..={most}");
        (values[at], given[at]) = (value, true);
    }
    if let Some((name, ..)) = keys.iter().zip(given).find_map(|(key, given)| (!given && key.3.is_none()).then_some(key))
    {
        bail!("{name} is missing; allowed: {}", keys.map(|key| key.0).join(", "));
    }
    Ok(values)
}

impl fmt::Display for GraphSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Debian => write!(f, "debian"),
            Self::Rmat { scale, degree, dim } => write!(f, "rmat:scale={scale},degree={degree},dim={dim}"),
            Self::Sbm { nodes, degree, communities, dim } => {
                write!(f, "sbm:nodes={nodes},degree={degree},communities={communities},dim={dim}")
            }
            Self::Ba { nodes, degree, dim } => write!(f, "ba:nodes={nodes},degree={degree},dim={dim}"),
            Self::Ws { nodes, degree, rewired, dim } => {
                write!(f, "ws:nodes={nodes},degree={degree},rewired={rewired},dim={dim}")
            }
            Self::Directory(path) => write!(f, "{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    //! Goal: what is written is what is meant, and nothing is guessed. Method: round trips and refusals.

    use super::*;

    #[test]
    fn specs_survive_a_round_trip_and_have_defaults() {
        for text in [
            "debian",
            "rmat:scale=9,degree=4,dim=7",
            "sbm:nodes=500,degree=6,communities=5,dim=3",
            "ba:nodes=500,degree=6,dim=3",
            "ws:nodes=500,degree=6,rewired=0,dim=3",
        ] {
            assert_eq!(text.parse::<GraphSpec>().unwrap().to_string(), text);
        }
        assert_eq!("rmat".parse::<GraphSpec>().unwrap().to_string(), "rmat:scale=15,degree=16,dim=602");
        assert!(matches!("/".parse::<GraphSpec>().unwrap(), GraphSpec::Directory(_)));
    }

    #[test]
    fn what_is_not_understood_is_refused_with_what_is_allowed() {
        for (text, words) in [
            ("", "debian | rmat"),
            ("redit", "debian | rmat"),
            ("debian:x=1", "no parameters"),
            ("rmat:size=3", "scale, degree, dim"),
            ("rmat:scale", "key=value"),
            ("rmat:scale=x", "not a number"),
            ("rmat:scale=64", "1..=28"),
            ("rmat:scale=3,scale=4", "twice"),
            ("sbm:nodes=3,communities=4", "communities"),
        ] {
            let error = format!("{:#}", text.parse::<GraphSpec>().unwrap_err());
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn graphs_grow_by_whole_sizes() {
        for (text, ranks, of, grown) in [
            ("rmat:scale=9,degree=4,dim=7", 8, 2, "rmat:scale=11,degree=4,dim=7"),
            ("rmat:scale=9,degree=4,dim=7", 2, 16, "rmat:scale=6,degree=4,dim=7"),
            ("sbm:nodes=600,degree=6,communities=6,dim=3", 6, 4, "sbm:nodes=900,degree=6,communities=9,dim=3"),
            ("ba:nodes=600,degree=6,dim=3", 5, 4, "ba:nodes=750,degree=6,dim=3"),
        ] {
            assert_eq!(text.parse::<GraphSpec>().unwrap().grown(ranks, of).unwrap().to_string(), grown);
        }
        for (text, ranks, of, words) in [
            ("debian", 4, 2, "only generated graphs"),
            ("ba:nodes=601,degree=6,dim=3", 5, 4, "whole"),
            ("rmat:scale=9,degree=4,dim=7", 3, 2, "powers of 2"),
            ("sbm:nodes=600,degree=6,communities=5,dim=3", 2, 4, "whole"),
            ("rmat:scale=28,degree=4,dim=7", 4, 2, "1..=28"),
        ] {
            let error = format!("{:#}", text.parse::<GraphSpec>().unwrap().grown(ranks, of).unwrap_err());
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn graphs_that_no_machine_holds_are_refused_before_they_are_drawn() {
        for (text, words) in [
            ("rmat:scale=28,degree=1,dim=65536", "feature rows"),
            ("sbm:nodes=65536,degree=1,communities=65536,dim=65536", "centres"),
            ("rmat:scale=28,degree=4096,dim=1", "edges"),
        ] {
            let error = format!("{:#}", text.parse::<GraphSpec>().unwrap().load(1).err().expect("refused"));
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn generated_graphs_depend_on_the_seed_alone() {
        for text in [
            "rmat:scale=10,degree=8,dim=5",
            "sbm:nodes=1000,degree=10,communities=8,dim=5",
            "ba:nodes=1000,degree=10,dim=5",
            "ws:nodes=1000,degree=10,rewired=20,dim=5",
        ] {
            let spec: GraphSpec = text.parse().unwrap();
            let [first, again, other] = [7, 7, 8].map(|seed| spec.load(seed).unwrap());
            let rows = |graph: &Graph| {
                let mut row = [0.0; 5];
                (0..graph.nodes() as u32)
                    .map(|node| {
                        graph.features.write_row(node, &mut row).unwrap();
                        (graph.topology.neighbours(node).to_vec(), graph.labels[node as usize], row.map(f32::to_bits))
                    })
                    .collect::<Vec<_>>()
            };
            assert!(rows(&first) == rows(&again), "{text}");
            assert!(rows(&first) != rows(&other), "{text}");
        }
    }

    #[test]
    fn degrees_are_heavy_tailed_about_the_mean_that_was_asked_for() {
        for (text, least, most) in [
            ("rmat:scale=13,degree=16,dim=1", 14.0, 32.0),
            ("sbm:nodes=8000,degree=20,communities=16,dim=1", 16.0, 20.0),
            ("ba:nodes=8000,degree=16,dim=1", 14.0, 16.0),
        ] {
            let graph = text.parse::<GraphSpec>().unwrap().load(1).unwrap();
            let mean = graph.topology.arcs() as f64 / graph.nodes() as f64;
            assert!((least..=most).contains(&mean), "{text}: mean degree {mean}");
            let highest = (0..graph.nodes() as u32).map(|node| graph.topology.degree(node)).max().unwrap();
            assert!(highest as f64 > 8.0 * mean, "{text}: highest degree {highest}, mean {mean}");
        }
    }

    #[test]
    fn a_small_world_is_a_ring_but_for_what_leads_anywhere() {
        let degrees = |text: &str| {
            let graph = text.parse::<GraphSpec>().unwrap().load(1).unwrap();
            (0..graph.nodes() as u32).map(|node| graph.topology.degree(node)).collect::<Vec<_>>()
        };
        assert!(degrees("ws:nodes=1000,degree=8,rewired=0,dim=1").iter().all(|&degree| degree == 8));
        let rewired = degrees("ws:nodes=1000,degree=8,rewired=50,dim=1");
        assert!(rewired.iter().any(|&degree| degree != 8) && rewired.iter().sum::<usize>() > 7_900);
    }

    #[test]
    fn four_fifths_of_the_block_models_edges_stay_inside() {
        let graph = "sbm:nodes=8000,degree=20,communities=16,dim=1".parse::<GraphSpec>().unwrap().load(1).unwrap();
        let inside: usize = (0..graph.nodes() as u32)
            .map(|node| {
                let same = |&&other: &&u32| graph.labels[node as usize] == graph.labels[other as usize];
                graph.topology.neighbours(node).iter().filter(same).count()
            })
            .sum();
        // 0.8 drawn inside plus a sixteenth of the rest by chance, less the duplicates, which are more frequent inside.
        let share = inside as f64 / graph.topology.arcs() as f64;
        assert!((0.76..0.83).contains(&share), "{share}");
    }
}
