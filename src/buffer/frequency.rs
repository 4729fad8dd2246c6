//! How often nodes were wanted lately: counts that halve over a fixed number of minibatches, brought up to date only when touched.
//!
//! A count is a score and the minibatch of that score. Its order among other counts does not change while time passes: the key
//! `log2(score) + minibatch / half_life` is fixed until the next touch, which only ever raises it.
//!
//! Nodes that are not resident are remembered in a table of 8-way buckets that never grows: a new node takes the place of the lowest
//! count of its bucket. Nodes of a bucket are told apart by 32 more bits of their hash; two that agree share a count.

use crate::id::NodeId;
use crate::memory::prefetch;
use crate::node_table::spread;

const WAYS: usize = 8;
/// Elapsed minibatches whose decay is tabled.
const TABLED: usize = 4096;

/// A decayed count of wants.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Count {
    /// The count at `minibatch`.
    pub(super) score: f32,
    /// The minibatch of the last touch.
    pub(super) minibatch: u32,
}

/// How counts decay.
pub(super) struct Decay {
    powers: Vec<f32>,
    per_minibatch: f64,
}

impl Decay {
    /// Counts halve every so many minibatches; never, where 0.
    pub(super) fn new(half_life: u32) -> Self {
        let per_minibatch = if half_life == 0 { 0.0 } else { 1.0 / f64::from(half_life) };
        Self { powers: (0..TABLED).map(|age| (-(age as f64) * per_minibatch).exp2() as f32).collect(), per_minibatch }
    }

    /// The count as of `now`.
    #[inline]
    pub(super) fn at(&self, count: Count, now: u32) -> f32 {
        let age = now.saturating_sub(count.minibatch);
        let power = self.powers.get(age as usize).copied();
        count.score * power.unwrap_or_else(|| (-f64::from(age) * self.per_minibatch).exp2() as f32)
    }

    /// The count after one more want.
    #[inline]
    pub(super) fn touched(&self, count: Count, now: u32) -> Count {
        Count { score: self.at(count, now) + 1.0, minibatch: now }
    }

    /// The place of a count among all others, whatever the time; minus infinity for a node that was never wanted.
    #[inline]
    pub(super) fn key(&self, count: Count) -> f64 {
        f64::from(count.score).log2() + f64::from(count.minibatch) * self.per_minibatch
    }

    /// The score that a count of `now` has at a key.
    pub(super) fn score_at(&self, key: f64, now: u32) -> f32 {
        (key - f64::from(now) * self.per_minibatch).exp2() as f32
    }

    pub(super) fn bytes(&self) -> usize {
        self.powers.capacity() * size_of::<f32>()
    }
}

#[derive(Clone, Copy, Default)]
#[repr(align(32))]
struct Bucket {
    tags: [u32; WAYS],
    scores: [f32; WAYS],
    minibatches: [u32; WAYS],
}

/// Counts of nodes that are not resident.
pub(super) struct FrequencyTable {
    buckets: Vec<Bucket>,
    shift: u32,
}

impl FrequencyTable {
    /// Remembers at least so many nodes.
    pub(super) fn with_capacity(nodes: usize) -> Self {
        let buckets = nodes.div_ceil(WAYS).next_power_of_two().max(2);
        Self { buckets: vec![Bucket::default(); buckets], shift: 64 - buckets.trailing_zeros() }
    }

    /// The bucket of a node, and its tag there; 0 marks an empty way.
    #[inline]
    fn place(&self, node: NodeId) -> (usize, u32) {
        let hash = spread(node.0);
        // The lower half of a product by an odd number tells nodes below 2^32 apart without loss.
        ((hash >> self.shift) as usize, (hash as u32).max(1))
    }

    /// Asks for a node's bucket, so that it is in the cache some nodes later.
    #[inline]
    pub(super) fn prefetch(&self, node: NodeId) {
        prefetch(&self.buckets, self.place(node).0);
    }

    #[inline]
    pub(super) fn get(&self, node: NodeId) -> Option<Count> {
        let (bucket, tag) = self.place(node);
        let bucket = &self.buckets[bucket];
        let way = bucket.tags.iter().position(|&other| other == tag)?;
        Some(Count { score: bucket.scores[way], minibatch: bucket.minibatches[way] })
    }

    /// Enters or updates a count; of a full bucket the lowest goes, the earlier way where two are equal.
    #[inline]
    pub(super) fn set(&mut self, node: NodeId, count: Count, decay: &Decay) {
        let (at, tag) = self.place(node);
        let bucket = &mut self.buckets[at];
        let known = bucket.tags.iter().position(|&other| other == tag);
        let way =
            known.or_else(|| bucket.tags.iter().position(|&other| other == 0)).unwrap_or_else(|| bucket.lowest(decay));
        bucket.tags[way] = tag;
        bucket.scores[way] = count.score;
        bucket.minibatches[way] = count.minibatch;
    }

    /// Counts one more want of a node; its score now.
    #[inline]
    pub(super) fn touch(&mut self, node: NodeId, now: u32, decay: &Decay) -> f32 {
        let (at, tag) = self.place(node);
        let bucket = &mut self.buckets[at];
        if let Some(way) = bucket.tags.iter().position(|&other| other == tag) {
            let count = Count { score: bucket.scores[way], minibatch: bucket.minibatches[way] };
            bucket.scores[way] = decay.touched(count, now).score;
            bucket.minibatches[way] = now;
            return bucket.scores[way];
        }
        self.set(node, Count { score: 1.0, minibatch: now }, decay);
        1.0
    }

    /// Takes a node out.
    #[inline]
    pub(super) fn take(&mut self, node: NodeId) -> Option<Count> {
        let (bucket, tag) = self.place(node);
        let bucket = &mut self.buckets[bucket];
        let way = bucket.tags.iter().position(|&other| other == tag)?;
        bucket.tags[way] = 0;
        Some(Count { score: bucket.scores[way], minibatch: bucket.minibatches[way] })
    }

    pub(super) fn bytes(&self) -> usize {
        self.buckets.capacity() * size_of::<Bucket>()
    }
}

impl Bucket {
    #[cold]
    fn lowest(&self, decay: &Decay) -> usize {
        let now = self.minibatches.iter().copied().max().unwrap_or(0);
        let value = |way: usize| decay.at(Count { score: self.scores[way], minibatch: self.minibatches[way] }, now);
        (1..WAYS).fold(0, |lowest, way| if value(way) < value(lowest) { way } else { lowest })
    }
}

#[cfg(test)]
mod tests {
    //! Goal: decayed counts keep their order, and the table forgets the lowest. Method: values worked out by hand.
    use super::*;

    #[test]
    fn a_count_halves_over_its_half_life_and_its_key_stays() {
        let decay = Decay::new(10);
        let count = decay.touched(decay.touched(Count::default(), 0), 10);
        assert_eq!(count, Count { score: 1.5, minibatch: 10 });
        assert!((decay.at(count, 30) - 0.375).abs() < 1e-6);
        assert!((decay.at(count, 100_010) - 0.0).abs() < 1e-6);
        // 1.5 at 10 is 3 at 0, and as much as 0.75 at 20.
        assert!((decay.key(count) - 3f64.log2()).abs() < 1e-6);
        assert!((decay.key(Count { score: 0.75, minibatch: 20 }) - decay.key(count)).abs() < 1e-6);
        assert_eq!(Decay::new(0).at(Count { score: 7.0, minibatch: 0 }, 1_000_000), 7.0);
    }

    #[test]
    fn a_full_bucket_forgets_its_lowest_count() {
        let decay = Decay::new(0);
        let mut table = FrequencyTable::with_capacity(1);
        let bucket = table.place(NodeId(0)).0;
        let nodes: Vec<_> = (0..).map(NodeId).filter(|&node| table.place(node).0 == bucket).take(WAYS + 1).collect();
        for (extra, &node) in nodes[..WAYS].iter().enumerate() {
            for _ in 0..=(extra + 3) % WAYS {
                table.touch(node, 1, &decay);
            }
        }
        table.touch(nodes[WAYS], 1, &decay);
        assert_eq!(table.get(nodes[5]), None, "it had the only count of one");
        assert_eq!(nodes.iter().filter(|&&node| table.get(node).is_some()).count(), WAYS);
        assert_eq!(table.take(nodes[4]), Some(Count { score: 8.0, minibatch: 1 }));
        assert_eq!(table.get(nodes[4]), None);
    }
}
