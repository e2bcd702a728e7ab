//! What work costs at least, what the device can do at best, and which of the two limits binds.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::environment::Ceilings;

/// Traffic and arithmetic that a piece of work cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Cost {
    /// Bytes read.
    pub read_bytes: f64,
    /// Bytes written.
    pub written_bytes: f64,
    /// Operations; a multiply-add is two.
    pub flops: f64,
}

impl Cost {
    /// Bytes in both directions.
    pub fn bytes(&self) -> f64 {
        self.read_bytes + self.written_bytes
    }
}

/// Measured ceilings of the device, as far as they bound some work. Null where one was not measured.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Limits {
    /// Reading device memory, decimal GB/s.
    pub read_gb_per_s: Option<f64>,
    /// The type of the matrix product that bounds the arithmetic, such as `bf16`.
    pub product: Option<String>,
    /// Its rate.
    pub product_tflop_per_s: Option<f64>,
}

/// The limit that binds.
#[derive(Debug, Clone, PartialEq)]
pub struct Bound {
    /// `read`, or `matmul` with its type.
    pub limit: String,
    /// The time that it leaves at best.
    pub seconds: f64,
}

impl Limits {
    /// Those of `ceilings` for work whose products are of type `product`.
    pub fn of(ceilings: Option<&Ceilings>, product: Option<&str>) -> Self {
        let rate = |name: &str| ceilings?.matmul_tflop_per_s.get(name).copied();
        Self {
            read_gb_per_s: ceilings.and_then(|c| c.read_gb_per_s),
            product: product.map(str::to_owned),
            product_tflop_per_s: product.and_then(rate),
        }
    }

    /// What binds work of this cost: bytes over the read rate or operations over the product's, whichever takes longer.
    /// `None` where neither was measured.
    pub fn bound(&self, cost: &Cost) -> Option<Bound> {
        let read = self.read_gb_per_s.map(|rate| Bound {
            limit: "read".to_owned(),
            seconds: cost.bytes() / rate / 1e9,
        });
        let product = self.product.as_ref().zip(self.product_tflop_per_s);
        let product = product.map(|(name, rate)| Bound {
            limit: format!("matmul {name}"),
            seconds: cost.flops / rate / 1e12,
        });
        [read, product]
            .into_iter()
            .flatten()
            .max_by(|a, b| a.seconds.total_cmp(&b.seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_longer_binds() {
        let limits = Limits {
            read_gb_per_s: Some(1000.0),
            product: Some("bf16".to_owned()),
            product_tflop_per_s: Some(100.0),
        };
        let cost = |bytes, flops| Cost {
            read_bytes: 0.75 * bytes,
            written_bytes: 0.25 * bytes,
            flops,
        };
        let bound = limits.bound(&cost(1e9, 1e10)).unwrap();
        assert_eq!(
            bound,
            Bound {
                limit: "read".to_owned(),
                seconds: 1e-3
            }
        );
        let bound = limits.bound(&cost(1e9, 1e12)).unwrap();
        assert_eq!((bound.limit.as_str(), bound.seconds), ("matmul bf16", 1e-2));
        assert_eq!(Limits::default().bound(&cost(1.0, 1.0)), None);
    }
}
