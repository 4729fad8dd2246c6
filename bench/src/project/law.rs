//! How a quantity goes on with the number of ranks, from a few numbers of ranks at which it is known.

use super::document::Scaling;
use super::model::Demand;
use super::point::Point;

/// `y = a + b x` for what a function makes of the quantity and another of the ranks, by least squares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Law {
    scale: Scale,
    a: f64,
    b: f64,
}

/// What is straight over what.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    /// The quantity itself, over the logarithm of the ranks.
    Linear,
    /// Its logarithm over theirs: a power of the ranks.
    Power,
    /// The logarithm of it over what is missing to 1, over theirs: a share, which stays one.
    Share,
    /// The quantity itself over 1/ranks: it comes to a limit.
    Limit,
}

/// Shares are kept so far from 0 and 1, where they have no logarithm.
const EDGE: f64 = 1e-6;

impl Scale {
    fn along(self, ranks: f64) -> f64 {
        match self {
            Self::Limit => 1.0 / ranks,
            _ => ranks.ln(),
        }
    }

    fn of(self, value: f64) -> f64 {
        match self {
            Self::Linear | Self::Limit => value,
            Self::Power => value.max(EDGE).ln(),
            Self::Share => {
                let share = value.clamp(EDGE, 1.0 - EDGE);
                (share / (1.0 - share)).ln()
            }
        }
    }

    fn back(self, value: f64) -> f64 {
        match self {
            Self::Linear | Self::Limit => value,
            Self::Power => value.exp(),
            Self::Share => 1.0 / (1.0 + (-value).exp()),
        }
    }
}

impl Law {
    /// Through points of ranks and value; a single one makes a constant.
    pub fn through(scale: Scale, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        let points: Vec<(f64, f64)> =
            points.into_iter().map(|(ranks, value)| (scale.along(ranks), scale.of(value))).collect();
        let count = points.len().max(1) as f64;
        let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
        let (x, y) = (mean(|point| point.0), mean(|point| point.1));
        let spread: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
        let slope = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum::<f64>();
        let b = if spread > 0.0 { slope / spread } else { 0.0 };
        Self { scale, a: y - b * x, b }
    }

    /// The quantity at so many ranks.
    pub fn at(&self, ranks: f64) -> f64 {
        self.scale.back(self.a + self.b * self.scale.along(ranks))
    }
}

/// Laws of what a job asks of the network.
#[derive(Clone, Debug)]
pub struct Laws {
    /// Input nodes of a minibatch: the fewer nodes there are within reach, the more of their neighbours are the same.
    inputs: Law,
    /// Share of a minibatch's inputs that is the rank's own.
    local: Law,
    /// Rows fetched for a row wanted.
    misses: Law,
    halo: Law,
    reader_skew: Law,
    owner_skew: Law,
    /// Slots for a halo node.
    buffer: f64,
}

impl Laws {
    /// Through these points, of which there is at least one.
    pub fn through(scaling: Scaling, points: &[Point]) -> Self {
        let law =
            |scale, of: fn(&Point) -> f64| Law::through(scale, points.iter().map(|point| (point.ranks, of(point))));
        let mean = |of: fn(&Point) -> f64| points.iter().map(of).sum::<f64>() / points.len() as f64;
        // Smaller and smaller partitions keep less and less. Those of one size keep what a partitioner can, and what chance adds to it.
        let (count, local) = match scaling {
            Scaling::Strong => (Scale::Power, Scale::Power),
            Scaling::Weak => (Scale::Linear, Scale::Limit),
        };
        Self {
            inputs: law(count, |point| point.inputs),
            local: law(local, |point| 1.0 - point.wanted / point.inputs),
            misses: law(Scale::Share, |point| point.fetched / point.wanted),
            halo: law(count, |point| point.halo),
            reader_skew: law(Scale::Linear, |point| point.reader_skew),
            owner_skew: law(Scale::Linear, |point| point.owner_skew),
            buffer: mean(|point| point.slots / point.halo),
        }
    }

    /// At so many ranks.
    pub fn at(&self, ranks: f64) -> Demand {
        let wanted = self.inputs.at(ranks) * (1.0 - self.local.at(ranks).max(0.0)).max(0.0);
        Demand {
            wanted,
            fetched: wanted * self.misses.at(ranks),
            halo: self.halo.at(ranks),
            buffer: self.buffer,
            reader_skew: self.reader_skew.at(ranks),
            owner_skew: self.owner_skew.at(ranks),
        }
    }
}

#[cfg(test)]
mod tests {
    //! Goal: a law goes through what follows it, and stays within what its quantity can be. Method: made points.

    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_power_goes_through_its_points(factor in 0.1f64..100.0, power in -1.0f64..1.0) {
            let of = |ranks: f64| factor * ranks.powf(power);
            let law = Law::through(Scale::Power, [2.0, 4.0, 8.0].map(|ranks| (ranks, of(ranks))));
            prop_assert!((law.at(64.0) / of(64.0) - 1.0).abs() < 1e-9);
        }

        #[test]
        fn a_share_stays_one(shares in prop::collection::vec(0.0f64..=1.0, 1..5), ranks in 1.0f64..1e6) {
            let points = shares.iter().enumerate().map(|(at, &share)| ((2 << at) as f64, share));
            let share = Law::through(Scale::Share, points).at(ranks);
            prop_assert!((0.0..=1.0).contains(&share));
        }
    }

    #[test]
    fn a_limit_is_come_to() {
        let law = Law::through(Scale::Limit, [2.0, 4.0, 16.0].map(|ranks| (ranks, 0.4 + 0.6 / ranks)));
        assert!((law.at(1e9) - 0.4).abs() < 1e-6 && (law.at(1.0) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn one_point_is_a_constant() {
        let law = Law::through(Scale::Linear, [(4.0, 3.0)]);
        assert_eq!((law.at(2.0), law.at(4096.0)), (3.0, 3.0));
    }
}
