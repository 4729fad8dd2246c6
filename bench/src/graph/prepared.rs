//! A partitioned graph in a directory, to be mapped by every rank.
//!
//! The launcher partitions once; ranks map the flat files, so a host holds the topology once however many ranks it runs, and only the
//! owner of a partition reads that partition's features. `manifest.json` names each file with its length and checksum. It is written
//! last, under another name and renamed: a directory with a manifest is complete.
//!
//! All files are arrays of little-endian numbers: `offsets.u64` (nodes + 1), `targets.u32` (both directions of each edge, ascending per
//! node), `labels.u16`, `splits.u8` (0 train, 1 validation, 2 test), `original.u32` (ids before partitioning), and for each partition
//! `P` its `halo.P.u32` (ascending) and `features.P.f32` (rows in node order). Another program can write such a directory; it may
//! leave a `checksum` out, and only lengths are verified then. The files must not change while they are mapped.

use super::hash::checksum;
use super::{Array, CLASSES_MAX, Features, Graph, Split, Topology, nodes_of};
use crate::partition::{Partitioned, Partitioner};
use anyhow::{Context, Result, ensure};
use bytemuck::Pod;
use rudder::{NodeId, PartitionBook, PartitionId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const FORMAT: &str = "rudder prepared graph";
const VERSION: u32 = 1;
const MANIFEST: &str = "manifest.json";

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: String,
    version: u32,
    graph: String,
    partitioner: Partitioner,
    classes: usize,
    /// `f32` in a feature row.
    width: usize,
    /// The first node of each partition, and the number of nodes.
    starts: Vec<u64>,
    /// Edges between partitions.
    edge_cut: u64,
    files: BTreeMap<String, FileEntry>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileEntry {
    bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    checksum: Option<String>,
}

/// A mapped prepared graph.
#[derive(Clone)]
pub struct Prepared {
    directory: PathBuf,
    manifest: Manifest,
    book: PartitionBook,
    topology: Topology,
    labels: Array<u16>,
    splits: Array<u8>,
    original: Array<u32>,
    halos: Vec<Array<u32>>,
    // Mapped here, faulted in only by those who read them.
    features: Vec<Array<f32>>,
}

impl Prepared {
    /// Write a partitioned graph into a directory, which is made if need be and must not hold a prepared graph yet.
    ///
    /// # Errors
    /// A file cannot be written, or the directory holds a prepared graph.
    pub fn write(directory: &Path, cut: &Partitioned) -> Result<()> {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let target = directory.join(MANIFEST);
        ensure!(!target.exists(), "{} exists: choose an empty directory", target.display());
        let mut files = Files { directory, entries: BTreeMap::new() };
        let graph = &cut.graph;
        files.write("offsets.u64", graph.topology.offsets())?;
        files.write("targets.u32", graph.topology.targets())?;
        files.write("labels.u16", &graph.labels)?;
        files.write("splits.u8", &graph.splits)?;
        files.write("original.u32", &cut.original)?;
        for (at, halo) in cut.halos.iter().enumerate() {
            files.write(&format!("halo.{at}.u32"), halo)?;
            let range = cut.book.range(PartitionId(at as u32));
            files.write(&format!("features.{at}.f32"), &rows(&graph.features, range)?)?;
        }
        let partitions = (0..cut.book.partitions()).map(PartitionId);
        let manifest = Manifest {
            format: FORMAT.into(),
            version: VERSION,
            graph: graph.name.clone(),
            partitioner: cut.partitioner,
            classes: graph.classes,
            width: graph.features.width(),
            starts: std::iter::once(0).chain(partitions.map(|partition| cut.book.range(partition).end)).collect(),
            edge_cut: cut.edge_cut,
            files: files.entries,
        };
        let partial = directory.join("manifest.json.partial");
        fs::write(&partial, serde_json::to_vec_pretty(&manifest)?)
            .and_then(|()| fs::rename(&partial, &target))
            .with_context(|| format!("cannot write {}", target.display()))
    }

    /// Map a prepared graph, verifying all but the features, which [`verify_features`](Self::verify_features) verifies.
    ///
    /// # Errors
    /// There is no manifest, a file is truncated or damaged, or the files contradict each other.
    pub fn open(directory: &Path) -> Result<Self> {
        Self::map(directory).with_context(|| format!("prepared graph {}", directory.display()))
    }

    fn map(directory: &Path) -> Result<Self> {
        let text = fs::read(directory.join(MANIFEST)).context("cannot read manifest.json: it is no prepared graph")?;
        let manifest: Manifest = serde_json::from_slice(&text).context("manifest.json is damaged")?;
        ensure!(manifest.format == FORMAT, "manifest.json is of format {:?}, not {FORMAT:?}", manifest.format);
        ensure!(manifest.version == VERSION, "version {}, where this program reads {VERSION}", manifest.version);
        let book = PartitionBook::from_starts(manifest.starts.clone())?;
        let files = Directory { path: directory, manifest: &manifest };
        let topology = Topology::from_rows(files.map("offsets.u64")?, files.map("targets.u32")?)?;
        let halos = (0..book.partitions()).map(|at| files.map(&format!("halo.{at}.u32"))).collect::<Result<_>>()?;
        let features = (0..book.partitions())
            .map(|at| files.map_unverified(&format!("features.{at}.f32")))
            .collect::<Result<_>>()?;
        let (labels, splits, original) =
            (files.map("labels.u16")?, files.map("splits.u8")?, files.map("original.u32")?);
        let directory = directory.to_owned();
        let prepared = Self { directory, book, topology, labels, splits, original, halos, features, manifest };
        prepared.check()?;
        Ok(prepared)
    }

    fn check(&self) -> Result<()> {
        let nodes = self.book.nodes();
        ensure!(self.width() > 0, "feature rows have no columns");
        let classes = self.classes();
        ensure!((1..=CLASSES_MAX).contains(&classes), "{classes} classes, where 1 to {CLASSES_MAX} are possible");
        for (what, found) in [
            ("offsets.u64", self.topology.nodes()),
            ("labels.u16", self.labels.len()),
            ("splits.u8", self.splits.len()),
            ("original.u32", self.original.len()),
        ] {
            ensure!(found as u64 == nodes, "{what} has {found} nodes where the manifest has {nodes}");
        }
        ensure!(self.labels.iter().all(|&label| usize::from(label) < self.classes()), "a label is not below classes");
        ensure!(
            self.splits.iter().all(|&split| Split::from_byte(split).is_some()),
            "splits.u8 holds more than 0, 1 and 2"
        );
        for (at, (halo, features)) in self.halos.iter().zip(&self.features).enumerate() {
            let range = self.book.range(PartitionId(at as u32));
            let sound = |&node: &u32| u64::from(node) < nodes && !range.contains(&u64::from(node));
            ensure!(
                halo.is_sorted() && halo.iter().all(sound),
                "halo.{at}.u32 is not an ascending list of remote nodes"
            );
            let numbers = (range.end - range.start).checked_mul(self.width() as u64);
            ensure!(numbers == Some(features.len() as u64), "features.{at}.f32 does not have a row for each node");
        }
        Ok(())
    }

    /// Verify the checksum of a partition's features; the owner does so once.
    ///
    /// # Errors
    /// The file is damaged.
    pub fn verify_features(&self, partition: PartitionId) -> Result<()> {
        let files = Directory { path: &self.directory, manifest: &self.manifest };
        files
            .verify(&format!("features.{}.f32", partition.0), self.features(partition))
            .with_context(|| format!("prepared graph {}", self.directory.display()))
    }

    /// What the graph is, for people.
    pub fn name(&self) -> &str {
        &self.manifest.graph
    }

    /// How it was partitioned.
    pub fn partitioner(&self) -> Partitioner {
        self.manifest.partitioner
    }

    /// Edges between partitions.
    pub fn edge_cut(&self) -> u64 {
        self.manifest.edge_cut
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.manifest.classes
    }

    /// Number of `f32` in a feature row.
    pub fn width(&self) -> usize {
        self.manifest.width
    }

    /// Who owns which node.
    pub fn book(&self) -> &PartitionBook {
        &self.book
    }

    /// The whole graph's topology.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The class of each node.
    pub fn labels(&self) -> &[u16] {
        &self.labels
    }

    /// The remote nodes adjacent to one of the partition's own, ascending.
    ///
    /// # Panics
    /// When there is no such partition.
    pub fn halo(&self, partition: PartitionId) -> &[u32] {
        &self.halos[partition.index()]
    }

    /// A partition's feature rows, mapped, in node order.
    ///
    /// # Panics
    /// When there is no such partition.
    pub fn features(&self, partition: PartitionId) -> &[f32] {
        &self.features[partition.index()]
    }

    /// The true row of any node: what a gather must bring.
    pub fn row(&self, node: NodeId) -> Option<&[f32]> {
        let (partition, row) = self.book.locate(node)?;
        let start = row as usize * self.width();
        self.features(partition).get(start..start + self.width())
    }

    /// A partition's nodes of a split, ascending.
    ///
    /// # Panics
    /// When there is no such partition.
    pub fn nodes(&self, partition: PartitionId, split: Split) -> Vec<NodeId> {
        nodes_of(&self.book, &self.splits, partition, split)
    }

    /// The graph, under the ids of this directory, to be partitioned anew.
    ///
    /// # Errors
    /// The topology, which another program may have written, is not one of undirected edges.
    pub fn graph(self: Arc<Self>) -> Result<Graph> {
        self.topology.check_undirected().context("targets.u32")?;
        Ok(Graph {
            name: self.name().to_owned(),
            topology: self.topology.clone(),
            labels: self.labels.clone(),
            classes: self.classes(),
            splits: self.splits.clone(),
            features: Features::prepared(self),
        })
    }

    pub(super) fn write_row(&self, node: u32, into: &mut [f32]) -> Result<()> {
        into.copy_from_slice(self.row(NodeId(node.into())).context("the features end before this node")?);
        Ok(())
    }
}

fn rows(features: &Features, nodes: std::ops::Range<u64>) -> Result<Vec<f32>> {
    let width = features.width();
    let mut rows = vec![0.0; (nodes.end - nodes.start) as usize * width];
    for (node, row) in nodes.zip(rows.chunks_exact_mut(width)) {
        features.write_row(node as u32, row)?;
    }
    Ok(rows)
}

struct Files<'a> {
    directory: &'a Path,
    entries: BTreeMap<String, FileEntry>,
}

impl Files<'_> {
    fn write<T: Pod>(&mut self, name: &str, values: &[T]) -> Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let path = self.directory.join(name);
        // What an earlier, interrupted run left may still be mapped somewhere: replace the file, never its bytes.
        let partial = self.directory.join(format!("{name}.partial"));
        fs::File::create(&partial)
            .and_then(|file| {
                let mut file = BufWriter::new(file);
                file.write_all(bytes)?;
                file.flush()
            })
            .and_then(|()| fs::rename(&partial, &path))
            .with_context(|| format!("cannot write {}", path.display()))?;
        let entry = FileEntry { bytes: bytes.len() as u64, checksum: Some(format!("{:016x}", checksum(bytes))) };
        self.entries.insert(name.to_owned(), entry);
        Ok(())
    }
}

struct Directory<'a> {
    path: &'a Path,
    manifest: &'a Manifest,
}

impl Directory<'_> {
    fn entry(&self, name: &str) -> Result<&FileEntry> {
        self.manifest.files.get(name).with_context(|| format!("manifest.json does not name {name}"))
    }

    fn map_unverified<T: Pod>(&self, name: &str) -> Result<Array<T>> {
        Array::map(&self.path.join(name), self.entry(name)?.bytes)
    }

    fn map<T: Pod>(&self, name: &str) -> Result<Array<T>> {
        let array = self.map_unverified(name)?;
        self.verify(name, &array)?;
        Ok(array)
    }

    fn verify<T: Pod>(&self, name: &str, values: &[T]) -> Result<()> {
        let Some(expected) = &self.entry(name)?.checksum else { return Ok(()) };
        let found = format!("{:016x}", checksum(bytemuck::cast_slice(values)));
        ensure!(*expected == found, "{name} is damaged: its checksum is {found}, not {expected}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    //! Goal: what ranks map is what was partitioned, and no damage goes unnoticed.
    //! Method: a round trip against the graph in memory; each file truncated and each byte class damaged.

    use super::super::GraphSpec;
    use super::*;
    use crate::partition::partition;

    fn written() -> (tempfile::TempDir, Partitioned) {
        let graph = "sbm:nodes=300,degree=8,communities=4,dim=3".parse::<GraphSpec>().unwrap().load(5).unwrap();
        let cut = partition(&graph, 3, Partitioner::Metis, 2).unwrap();
        let directory = tempfile::tempdir().unwrap();
        Prepared::write(directory.path(), &cut).unwrap();
        (directory, cut)
    }

    fn cause(result: Result<impl Sized>) -> String {
        format!("{:#}", result.err().expect("damage went unnoticed"))
    }

    #[test]
    fn ranks_map_what_was_partitioned() {
        let (directory, cut) = written();
        let prepared = Prepared::open(directory.path()).unwrap();
        assert_eq!((prepared.book(), prepared.edge_cut()), (&cut.book, cut.edge_cut));
        assert_eq!(prepared.labels(), &cut.graph.labels[..]);
        assert_eq!(*prepared.original, cut.original);
        let mut row = [0.0; 3];
        for node in 0..cut.graph.nodes() as u32 {
            assert_eq!(prepared.topology().neighbours(node), cut.graph.topology.neighbours(node));
            cut.graph.features.write_row(node, &mut row).unwrap();
            assert_eq!(prepared.row(NodeId(node.into())).unwrap(), row);
        }
        let mut trained = 0;
        for partition in (0..3).map(PartitionId) {
            prepared.verify_features(partition).unwrap();
            assert_eq!(prepared.halo(partition), cut.halos[partition.index()]);
            trained += prepared.nodes(partition, Split::Train).len();
        }
        assert_eq!(trained, (0..cut.graph.nodes() as u32).filter(|&node| cut.graph.is_in(node, Split::Train)).count());
    }

    #[test]
    fn a_single_partition_has_an_empty_halo_and_checksums_may_be_left_out() {
        let (directory, cut) = written();
        let whole = partition(&cut.graph, 1, Partitioner::Metis, 0).unwrap();
        let single = directory.path().join("single");
        Prepared::write(&single, &whole).unwrap();
        let manifest = single.join(MANIFEST);
        let mut parsed: Manifest = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
        parsed.files.values_mut().for_each(|entry| entry.checksum = None);
        fs::write(&manifest, serde_json::to_vec(&parsed).unwrap()).unwrap();
        let prepared = Prepared::open(&single).unwrap();
        assert!(prepared.halo(PartitionId(0)).is_empty());
        assert_eq!(prepared.edge_cut(), 0);
        prepared.verify_features(PartitionId(0)).unwrap();
    }

    #[test]
    fn a_directory_is_a_graph_again() {
        let (directory, cut) = written();
        let graph = GraphSpec::Directory(directory.path().into()).load(0).unwrap();
        let again = partition(&graph, 2, Partitioner::Range, 0).unwrap().graph;
        let (mut row, mut expected) = ([0.0; 3], [0.0; 3]);
        for node in 0..again.nodes() as u32 {
            assert_eq!(again.topology.neighbours(node), cut.graph.topology.neighbours(node));
            again.features.write_row(node, &mut row).unwrap();
            cut.graph.features.write_row(node, &mut expected).unwrap();
            assert_eq!(row, expected);
        }
    }

    #[test]
    fn a_directory_with_one_way_edges_is_not_partitioned_anew() {
        let (directory, cut) = written();
        let mut targets = cut.graph.topology.targets().to_vec();
        // The first node loses one neighbour for another, which knows nothing of it.
        let stranger = (1..).find(|node| !targets[..cut.graph.topology.degree(0)].contains(node)).unwrap();
        targets[0] = stranger;
        targets[..cut.graph.topology.degree(0)].sort_unstable();
        fs::write(directory.path().join("targets.u32"), bytemuck::cast_slice(&targets)).unwrap();
        let manifest = directory.path().join(MANIFEST);
        let mut parsed: Manifest = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
        parsed.files.values_mut().for_each(|entry| entry.checksum = None);
        fs::write(&manifest, serde_json::to_vec(&parsed).unwrap()).unwrap();
        let error = cause(GraphSpec::Directory(directory.path().into()).load(0));
        assert!(error.contains("targets.u32") && error.contains("only one"), "{error}");
    }

    #[test]
    fn truncated_and_damaged_files_are_refused_by_name() {
        for name in
            ["offsets.u64", "targets.u32", "labels.u16", "splits.u8", "original.u32", "halo.1.u32", "features.2.f32"]
        {
            let (directory, _) = written();
            let path = directory.path().join(name);
            let bytes = fs::read(&path).unwrap();
            fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
            let error = cause(Prepared::open(directory.path()));
            assert!(error.contains(name) && error.contains("truncated"), "{error}");

            let mut damaged = bytes;
            let at = damaged.len() / 2;
            damaged[at] ^= 1;
            fs::write(&path, damaged).unwrap();
            let error =
                cause(Prepared::open(directory.path()).and_then(|prepared| prepared.verify_features(PartitionId(2))));
            assert!(error.contains(name) && error.contains("damaged"), "{error}");
        }
    }

    #[test]
    fn a_directory_without_a_sound_manifest_is_refused() {
        let (directory, cut) = written();
        assert!(cause(Prepared::write(directory.path(), &cut)).contains("empty directory"));
        let manifest = directory.path().join(MANIFEST);
        let text = fs::read_to_string(&manifest).unwrap();
        for (damaged, words) in [
            (text[..text.len() / 2].to_owned(), "damaged"),
            (text.replace("\"version\": 1", "\"version\": 7"), "version 7"),
            (text.replace("\"width\": 3", "\"width\": 4"), "a row for each node"),
            (text.replace("\"classes\": 4", "\"classes\": 2"), "below classes"),
            (text.replace("\"classes\": 4", "\"classes\": 65537"), "1 to 65536"),
        ] {
            assert_ne!(damaged, text);
            fs::write(&manifest, damaged).unwrap();
            let error = cause(Prepared::open(directory.path()));
            assert!(error.contains(words), "{error}");
        }
        fs::remove_file(&manifest).unwrap();
        assert!(cause(Prepared::open(directory.path())).contains("no prepared graph"));
    }
}
