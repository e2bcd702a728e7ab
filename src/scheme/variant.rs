//! Variants: what a model's weights and activations are turned into before it is measured.

use std::fmt;
use std::str::FromStr;

use super::{BLOCK, DType};
use crate::error::{Error, Result};

/// How the weights of the decoder's linear layers are stored. Embeddings, norms and the output head keep the plain
/// 16-bit (or f32) type of the variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightScheme {
    /// Not quantised.
    Plain(DType),
    /// Eight bits, symmetric, one scale per output channel.
    Int8,
    /// Four bits, symmetric, one scale per this many columns of a row.
    Int4 {
        /// The wished group; a layer takes the largest of it, 64 and 32 that divides its K.
        group: usize,
    },
    /// As the checkpoint has them, layer by layer: quantised or not.
    AsIs,
}

/// What a linear layer's input is turned into before the product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activations {
    /// Left in the activation type.
    Float,
    /// Eight bits, symmetric, one scale per token, found on the fly.
    Int8PerToken,
    /// As the checkpoint says, layer by layer.
    AsIs,
}

/// How codes are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// Nothing is quantised.
    None,
    /// Round to nearest, scales from the largest magnitude.
    Rtn,
    /// Nothing is done here; the checkpoint has its own.
    AsIs,
}

impl Method {
    /// The name used in records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Rtn => "rtn",
            Self::AsIs => "as-is",
        }
    }
}

/// A variant as named on the command line, such as `bf16`, `int8`, `w8a8`, `w4a16` or `w4a16:rtn:g64`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Variant {
    /// The name as it was given.
    pub name: String,
    /// Storage of the linear layers.
    pub weights: WeightScheme,
    /// Treatment of their inputs.
    pub activations: Activations,
    /// How codes are found.
    pub method: Method,
}

/// The scheme in the terms of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuantScheme {
    /// Bits of a weight.
    pub bits: usize,
    /// Columns per scale; `None` where a scale covers a whole row or nothing is quantised.
    pub group_size: Option<usize>,
    /// Whether the zero point is fixed; `None` where nothing is quantised.
    pub symmetric: Option<bool>,
    /// Treatment of activations.
    pub activations: Activations,
    /// How codes are found.
    pub method: Method,
}

/// Every base name a variant may have.
const BASES: &str = "as-is, bf16, f16, f32, int8, w8a8, w4a16";

impl Variant {
    /// A variant that keeps plain weights of this type.
    pub fn plain(dtype: DType) -> Self {
        Self {
            name: dtype.name().to_owned(),
            weights: WeightScheme::Plain(dtype),
            activations: Activations::Float,
            method: Method::None,
        }
    }

    /// The variant that leaves a checkpoint as it is.
    pub fn as_is() -> Self {
        Self {
            name: "as-is".to_owned(),
            weights: WeightScheme::AsIs,
            activations: Activations::AsIs,
            method: Method::AsIs,
        }
    }

    /// The scheme in the terms of a record; `None` where only the checkpoint knows it.
    pub fn scheme(&self) -> Option<QuantScheme> {
        let (bits, group_size, symmetric) = match self.weights {
            WeightScheme::Plain(dtype) => (dtype.size() * 8, None, None),
            WeightScheme::Int8 => (8, None, Some(true)),
            WeightScheme::Int4 { group } => (4, Some(group), Some(true)),
            WeightScheme::AsIs => return None,
        };
        Some(QuantScheme {
            bits,
            group_size,
            symmetric,
            activations: self.activations,
            method: self.method,
        })
    }

    /// The group that a layer with `k` input features gets, `k` itself for one scale per row.
    ///
    /// # Errors
    /// If no group of the scheme divides `k`; `layer` names the culprit.
    pub fn group_for(&self, layer: &str, k: usize) -> Result<usize> {
        match self.weights {
            WeightScheme::Plain(_) | WeightScheme::Int8 | WeightScheme::AsIs => Ok(k),
            WeightScheme::Int4 { group } => [group, 64, BLOCK]
                .into_iter()
                .find(|&g| g <= group && k.is_multiple_of(g))
                .ok_or_else(|| {
                    Error::Config(format!(
                        "variant '{}': no group fits {layer}: its K = {k} is not a multiple of {}",
                        self.name,
                        group.min(BLOCK)
                    ))
                }),
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl FromStr for Variant {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let mut parts = s.split(':');
        let base = parts.next().unwrap_or_default();
        let mut variant = match base {
            "as-is" => Self::as_is(),
            "int8" | "w8a16" => Self::quantised(s, WeightScheme::Int8, Activations::Float),
            "w8a8" => Self::quantised(s, WeightScheme::Int8, Activations::Int8PerToken),
            "w4a16" => Self::quantised(s, WeightScheme::Int4 { group: 128 }, Activations::Float),
            _ => match base.parse() {
                Ok(dtype) => Self {
                    name: s.to_owned(),
                    ..Self::plain(dtype)
                },
                Err(_) => return Err(format!("unknown variant '{base}': expected one of {BASES}")),
            },
        };
        for option in parts {
            variant.apply(option)?;
        }
        Ok(variant)
    }
}

impl Variant {
    fn quantised(name: &str, weights: WeightScheme, activations: Activations) -> Self {
        Self {
            name: name.to_owned(),
            weights,
            activations,
            method: Method::Rtn,
        }
    }

    fn apply(&mut self, option: &str) -> Result<(), String> {
        let name = &self.name;
        match (option, &mut self.weights) {
            (_, WeightScheme::Plain(_)) => Err(format!(
                "variant '{name}': '{option}' fits no plain weights"
            )),
            (_, WeightScheme::AsIs) => Err(format!(
                "variant '{name}': '{option}': nothing is done to weights that stay as they are"
            )),
            ("rtn", _) => Ok(()),
            ("g128" | "g64" | "g32", WeightScheme::Int4 { group }) => {
                *group = option[1..].parse().expect("digits");
                Ok(())
            }
            (g, WeightScheme::Int8) if g.starts_with('g') && g[1..].parse::<usize>().is_ok() => {
                Err(format!(
                    "variant '{name}': eight-bit weights have one scale per output channel, no group"
                ))
            }
            _ => Err(format!(
                "variant '{name}': unknown option '{option}': expected rtn, or g128, g64, g32 with w4a16"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_to_what_they_say() {
        let w4: Variant = "w4a16:rtn:g64".parse().unwrap();
        assert_eq!(w4.weights, WeightScheme::Int4 { group: 64 });
        assert_eq!(w4.name, "w4a16:rtn:g64");
        assert_eq!(
            "w8a8".parse::<Variant>().unwrap().activations,
            Activations::Int8PerToken
        );
        assert_eq!(
            "bf16".parse::<Variant>().unwrap().weights,
            WeightScheme::Plain(DType::BF16)
        );
        for bad in [
            "",
            "w4",
            "bf16:g64",
            "int8:g64",
            "w4a16:g16",
            "w4a16:magic",
            "as-is:g64",
        ] {
            assert!(bad.parse::<Variant>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_layer_takes_the_largest_group_that_divides_it() {
        let wished = |name: &str, k| name.parse::<Variant>().unwrap().group_for("layer", k);
        assert_eq!(wished("w4a16", 1536).unwrap(), 128);
        assert_eq!(wished("w4a16", 576).unwrap(), 64);
        assert_eq!(wished("w4a16:g32", 576).unwrap(), 32);
        assert_eq!(wished("w4a16", 96).unwrap(), 32);
        assert_eq!(wished("int8", 577).unwrap(), 577);
        assert!(
            wished("w4a16", 48)
                .unwrap_err()
                .to_string()
                .contains("layer")
        );
    }
}
