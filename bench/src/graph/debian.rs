//! The Debian package graph, carried in the binary.
//!
//! `data/make_debian.py` writes the file. It stores word ids instead of features, so 60 thousand rows of 128 columns take 0.4 MB.
//!
//! The file, all numbers little-endian: magic `RUDDERDG`, version `u32`, payload length `u64`, SHA-256 of the payload, then the payload
//! in one zstd frame. The payload: nodes, edges, words and sections, `u32` each; the snapshot's name; the sections' names; a section
//! byte a node; for each node the number of its higher neighbours and the gaps between them; for each node the number of its words and
//! their ids. Names are a length byte and UTF-8; numbers after the section bytes are LEB128.

use super::features::{Features, Words};
use super::{Graph, Split, Topology};
use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

const FILE: &[u8] = include_bytes!("../../data/debian.rgz");
const MAGIC: &[u8] = b"RUDDERDG";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 52;
/// Far above the real payload; a damaged length must not make us allocate the machine's memory.
const PAYLOAD_BYTES_MAX: u64 = 64 << 20;
const WIDTH: usize = 128;

/// The graph of the bookworm packages: sections as labels, hashed words of the short descriptions as features.
pub fn load() -> Result<Graph> {
    parse(FILE).context("the Debian graph in this binary is damaged: build it again from a clean checkout")
}

fn parse(file: &[u8]) -> Result<Graph> {
    let payload = payload(file)?;
    let mut reader = Reader { bytes: &payload };
    let [nodes, edges, words, sections] = [reader.u32()?, reader.u32()?, reader.u32()?, reader.u32()?];
    ensure!(words <= 1 << 16, "{words} words do not fit 16-bit ids");
    ensure!(sections <= 1 << 8, "{sections} sections do not fit a byte");
    let name = reader.text()?.to_owned();
    for _ in 0..sections {
        reader.text()?;
    }
    let labels: Vec<u16> = reader.take(nodes as usize)?.iter().map(|&section| u16::from(section)).collect();
    ensure!(labels.iter().all(|&label| u32::from(label) < sections), "a node's section is not one of the {sections}");
    let topology = reader.topology(nodes, edges)?;
    let words = reader.words(nodes, words)?;
    ensure!(reader.bytes.is_empty(), "{} bytes follow the last node", reader.bytes.len());
    Ok(Graph {
        name,
        topology,
        labels: labels.into(),
        classes: sections as usize,
        splits: (0..u64::from(nodes)).map(|node| Split::of(node) as u8).collect::<Vec<_>>().into(),
        features: Features::words(WIDTH, words),
    })
}

fn payload(file: &[u8]) -> Result<Vec<u8>> {
    ensure!(file.len() > HEADER_BYTES, "{} bytes are less than a header", file.len());
    let mut header = Reader { bytes: file };
    ensure!(header.take(MAGIC.len())? == MAGIC, "it does not begin with RUDDERDG");
    let version = header.u32()?;
    ensure!(version == VERSION, "version {version}, where this program reads {VERSION}");
    let bytes = u64::from(header.u32()?) | u64::from(header.u32()?) << 32;
    ensure!(bytes <= PAYLOAD_BYTES_MAX, "a payload of {bytes} bytes is more than {PAYLOAD_BYTES_MAX}");
    let digest = header.take(32)?;
    let payload = zstd::bulk::decompress(header.bytes, bytes as usize).context("the payload does not decompress")?;
    ensure!(payload.len() as u64 == bytes, "{} bytes of payload, not {bytes}", payload.len());
    ensure!(Sha256::digest(&payload).as_slice() == digest, "the payload's SHA-256 does not match");
    Ok(payload)
}

struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8]> {
        let Some((taken, rest)) = self.bytes.split_at_checked(bytes) else {
            bail!("it ends {} bytes early", bytes - self.bytes.len());
        };
        self.bytes = rest;
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32> {
        let raw = self.take(4)?;
        Ok(u32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]))
    }

    fn text(&mut self) -> Result<&'a str> {
        let bytes = self.take(1)?[0];
        std::str::from_utf8(self.take(bytes.into())?).context("a name is not UTF-8")
    }

    fn varint(&mut self) -> Result<u32> {
        let mut value = 0u64;
        for shift in (0..35).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return u32::try_from(value).context("a number is more than 32 bits");
            }
        }
        bail!("a number is more than 32 bits")
    }

    fn topology(&mut self, nodes: u32, edges: u32) -> Result<Topology> {
        let mut pairs = Vec::with_capacity((edges as usize).min(self.bytes.len()));
        for node in 0..nodes {
            let mut previous = node;
            for _ in 0..self.varint()? {
                let gap = self.varint()?;
                previous =
                    previous.checked_add(gap).and_then(|at| at.checked_add(1)).context("an edge leaves the graph")?;
                pairs.push((node, previous));
            }
        }
        ensure!(pairs.len() == edges as usize, "{} edges, not {edges}", pairs.len());
        Topology::from_edges(nodes as usize, &pairs)
    }

    fn words(&mut self, nodes: u32, words: u32) -> Result<Words> {
        let mut offsets = vec![0];
        let mut tokens = Vec::new();
        let mut nodes_with = vec![0u32; words as usize];
        for _ in 0..nodes {
            for _ in 0..self.varint()? {
                let token = self.varint()?;
                ensure!(token < words, "word {token} is not one of the {words}");
                nodes_with[token as usize] += 1;
                tokens.push(token as u16);
            }
            offsets.push(tokens.len() as u32);
        }
        let weights = nodes_with.iter().map(|&count| (nodes as f32 / count.max(1) as f32).ln()).collect();
        Ok(Words { offsets, tokens, weights })
    }
}

#[cfg(test)]
mod tests {
    //! Goal: the graph that is carried is the one that was published in the data card, and a damaged file is refused with its cause.
    //! Method: pinned counts and digest; every kind of damage to the real file.

    use super::*;

    #[test]
    fn the_carried_graph_is_the_published_one() {
        let graph = load().unwrap();
        assert_eq!((graph.nodes(), graph.topology.arcs() / 2, graph.classes), (60_376, 295_300, 58));
        let digest = Sha256::digest(payload(FILE).unwrap());
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(include_str!("../../data/README.md").contains(&hex), "the data card does not name {hex}");
        assert!(graph.name.contains("bookworm"), "{}", graph.name);
    }

    #[test]
    fn it_is_undirected_without_loops_and_no_node_is_isolated() {
        let topology = load().unwrap().topology;
        for node in 0..topology.nodes() as u32 {
            let neighbours = topology.neighbours(node);
            assert!(!neighbours.is_empty());
            assert!(neighbours.windows(2).all(|pair| pair[0] < pair[1]));
            for &other in neighbours {
                assert_ne!(other, node);
                assert!(topology.neighbours(other).binary_search(&node).is_ok(), "{node}-{other} has one direction");
            }
        }
    }

    #[test]
    fn the_splits_are_as_large_as_promised() {
        let graph = load().unwrap();
        let share = |split| {
            (0..graph.nodes() as u32).filter(|&node| graph.is_in(node, split)).count() as f64 / graph.nodes() as f64
        };
        // Every node is in exactly one split by construction of the byte; the shares are what can go wrong.
        for (split, expected) in [(Split::Train, 0.6), (Split::Validation, 0.2), (Split::Test, 0.2)] {
            assert!((share(split) - expected).abs() < 0.01, "{split:?}: {}", share(split));
        }
    }

    #[test]
    fn rows_are_scaled_alike_and_differ_between_packages() {
        let graph = load().unwrap();
        let mut row = [0.0; WIDTH];
        let mut other = [0.0; WIDTH];
        graph.features.write_row(0, &mut row).unwrap();
        graph.features.write_row(40_000, &mut other).unwrap();
        assert!((row.iter().map(|value| value * value).sum::<f32>() - WIDTH as f32).abs() < 0.1);
        assert_ne!(row, other);
    }

    #[test]
    fn damage_is_refused_with_its_cause() {
        let refused = |file: &[u8], cause: &str| {
            let error = format!("{:#}", parse(file).err().expect("a damaged file was read"));
            assert!(error.contains(cause), "{error} instead of {cause}");
        };
        refused(&FILE[..20], "less than a header");
        refused(&FILE[..FILE.len() / 2], "does not decompress");
        let damaged = |at: usize, byte: u8| {
            let mut file = FILE.to_vec();
            file[at] = byte;
            file
        };
        refused(&damaged(0, b'X'), "RUDDERDG");
        refused(&damaged(8, 9), "version 9");
        refused(&damaged(19, 0xFF), "more than 67108864");
        refused(&damaged(20, !FILE[20]), "SHA-256");
    }
}
