//! A mean and how well it is known.

use serde::{Deserialize, Serialize};

/// Student's t for a two-sided 95 % interval, by degrees of freedom from 1 (NIST/SEMATECH e-Handbook, 1.3.6.7.2); beyond the
/// table the normal's.
const T95: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
];

/// A mean with its 95 % confidence interval (Student's t).
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Interval {
    /// The mean.
    pub mean: f64,
    /// Half of the interval's width.
    pub half: f64,
    /// The least of the values.
    pub least: f64,
    /// How many values.
    pub runs: usize,
}

impl Interval {
    /// Of these values.
    #[must_use]
    pub fn of(values: &[f64]) -> Self {
        let n = values.len();
        let mean = values.iter().sum::<f64>() / n.max(1) as f64;
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        let half = if n > 1 {
            let deviation = (squares / (n - 1) as f64).sqrt();
            T95.get(n - 2).copied().unwrap_or(1.96) * deviation / (n as f64).sqrt()
        } else {
            0.0
        };
        Self {
            mean,
            half,
            least: values.iter().copied().fold(f64::INFINITY, f64::min),
            runs: n,
        }
    }

    /// Whether the two intervals are apart.
    #[must_use]
    pub fn apart(&self, other: &Self) -> bool {
        (self.mean - other.mean).abs() > self.half + other.half
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_students() {
        // Mean 3, deviation sqrt(2.5), t(4) = 2.776.
        let i = Interval::of(&[1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!((i.mean, i.least, i.runs), (3.0, 1.0, 5));
        assert!((i.half - 2.776 * 2.5f64.sqrt() / 5f64.sqrt()).abs() < 1e-9);
        assert_eq!(Interval::of(&[2.0]).half, 0.0);
        let other = Interval::of(&[3.5, 4.0, 4.5, 5.0, 5.5]);
        assert!(!i.apart(&other) && i.apart(&Interval::of(&[9.0, 9.1, 9.2])));
    }
}
