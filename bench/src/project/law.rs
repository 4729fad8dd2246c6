//! How a quantity goes on with the number of ranks, from a few numbers of ranks at which it is known.

/// `y = a + b ln(ranks)` for what a function makes of the quantity, by least squares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Law {
    scale: Scale,
    a: f64,
    b: f64,
}

/// What is straight over the logarithm of the ranks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    /// The quantity itself.
    Linear,
    /// Its logarithm: a power of the ranks.
    Power,
    /// The logarithm of it over what is missing to 1: a share, which stays one.
    Share,
}

/// Shares are kept so far from 0 and 1, where they have no logarithm.
const EDGE: f64 = 1e-6;

impl Scale {
    fn of(self, value: f64) -> f64 {
        match self {
            Self::Linear => value,
            Self::Power => value.max(EDGE).ln(),
            Self::Share => {
                let share = value.clamp(EDGE, 1.0 - EDGE);
                (share / (1.0 - share)).ln()
            }
        }
    }

    fn back(self, value: f64) -> f64 {
        match self {
            Self::Linear => value,
            Self::Power => value.exp(),
            Self::Share => 1.0 / (1.0 + (-value).exp()),
        }
    }
}

impl Law {
    /// Through points of ranks and value; a single one makes a constant.
    pub fn through(scale: Scale, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        let points: Vec<(f64, f64)> = points.into_iter().map(|(ranks, value)| (ranks.ln(), scale.of(value))).collect();
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
        self.scale.back(self.a + self.b * ranks.ln())
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
    fn one_point_is_a_constant() {
        let law = Law::through(Scale::Linear, [(4.0, 3.0)]);
        assert_eq!((law.at(2.0), law.at(4096.0)), (3.0, 3.0));
    }
}
