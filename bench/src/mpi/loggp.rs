//! The LogGP parameters of a way to get rows (Alexandrov and others, 1995), by least squares from three sweeps.
//!
//! | parameter | of which sweep | how |
//! |---|---|---|
//! | `o`, the overhead of a message | message rate | slope of the time until the start has returned, over the number of rows |
//! | `g`, the gap between messages | message rate | slope of the whole time, over the number of rows |
//! | `G`, the gap between bytes | bandwidth | slope of a row's time in a window, over its bytes |
//! | `L`, the latency | latency | intercept over the bytes; a get goes there and back, so it is 2 L + 2 o |
//!
//! The fits over bytes weigh each point by the square of its inverse, since sizes span decades: what is least is the relative error.

use super::fitted::LogGp;

/// One point of a sweep: what was varied, and the time in µs.
pub type Point = (f64, f64);

/// The sweeps of one contender.
#[derive(Clone, Debug, Default)]
pub struct Sweeps {
    /// Time of one row, by its bytes.
    pub latency: Vec<Point>,
    /// Time of one row within a window, by its bytes.
    pub bandwidth: Vec<Point>,
    /// Time of a gather, by its rows.
    pub rate: Vec<Point>,
    /// Time until its start has returned, by its rows.
    pub start: Vec<Point>,
}

impl Sweeps {
    /// The parameters; `None` where a sweep has fewer than two points.
    pub fn fit(&self, contender: &str) -> Option<LogGp> {
        let relative = |(_, us): &Point| 1.0 / (us * us).max(f64::MIN_POSITIVE);
        let (_, o_us) = line(&self.start, |_| 1.0)?;
        let (_, g_us) = line(&self.rate, |_| 1.0)?;
        let (_, gap_us) = line(&self.bandwidth, relative)?;
        let (there_and_back, _) = line(&self.latency, relative)?;
        let latency_us = there_and_back / 2.0 - o_us;
        Some(LogGp { contender: contender.into(), latency_us, o_us, g_us, gap_ns_per_byte: gap_us * 1e3 })
    }
}

/// Intercept and slope of the weighted least squares, of all lines that do not fall: more rows or bytes take no less time, whatever noise says.
fn line(points: &[Point], weight: impl Fn(&Point) -> f64) -> Option<(f64, f64)> {
    let sum = |of: &dyn Fn(&Point) -> f64| points.iter().map(|point| weight(point) * of(point)).sum::<f64>();
    let (w, x, y) = (sum(&|_| 1.0), sum(&|point| point.0), sum(&|point| point.1));
    let (xx, xy) = (sum(&|point| point.0 * point.0), sum(&|point| point.0 * point.1));
    let determinant = w * xx - x * x;
    let slope = (w * xy - x * y) / determinant;
    (points.len() > 1 && slope.is_finite()).then(|| {
        let slope = slope.max(0.0);
        ((y - slope * x) / w, slope)
    })
}

#[cfg(test)]
mod tests {
    //! Goal: the parameters of a network that obeys the model are found again. Method: sweeps made by the model, exactly and with noise.

    use super::*;

    fn sweeps(noise: impl Fn(usize) -> f64) -> Sweeps {
        let (latency, o, g, gap) = (2.0, 0.3, 0.5, 0.001);
        let sizes = || (3..21).map(|power| f64::from(1 << power));
        let counts = || [1, 4, 16, 64, 256].into_iter().map(f64::from);
        let noisy =
            |points: Vec<Point>| points.into_iter().enumerate().map(|(at, (x, us))| (x, us * noise(at))).collect();
        Sweeps {
            latency: noisy(sizes().map(|bytes| (bytes, 2.0 * latency + 2.0 * o + gap * bytes)).collect()),
            bandwidth: noisy(sizes().map(|bytes| (bytes, g + gap * bytes)).collect()),
            rate: noisy(counts().map(|rows| (rows, 4.0 + g * rows)).collect()),
            start: noisy(counts().map(|rows| (rows, 0.1 + o * rows)).collect()),
        }
    }

    #[test]
    fn a_network_of_the_model_is_found_again() {
        for (noise, within) in [(0.0, 1e-6), (0.02, 0.1)] {
            let fit = sweeps(|at| 1.0 + noise * if at % 2 == 0 { 1.0 } else { -1.0 }).fit("x").unwrap();
            let found = [fit.latency_us, fit.o_us, fit.g_us, fit.gap_ns_per_byte];
            for (found, meant) in found.into_iter().zip([2.0, 0.3, 0.5, 1.0]) {
                assert!((found / meant - 1.0).abs() < within, "{found} for {meant} with noise {noise}");
            }
        }
    }

    #[test]
    fn noise_makes_no_gap_negative() {
        let mut sweeps = sweeps(|_| 1.0);
        sweeps.rate = vec![(1.0, 12.0), (16.0, 10.0), (256.0, 8.0)];
        assert_eq!(sweeps.fit("x").unwrap().g_us, 0.0);
    }

    #[test]
    fn one_point_makes_no_line() {
        let mut sweeps = sweeps(|_| 1.0);
        sweeps.rate.truncate(1);
        assert_eq!(sweeps.fit("x"), None);
    }
}
