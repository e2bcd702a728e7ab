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
    /// Column by column, each error made good by the columns that follow (GPTQ).
    Gptq,
    /// Inputs scaled channel by channel where that lessens the error, ranges clipped, then rounded to nearest (AWQ).
    Awq,
    /// AWQ's scales and clipped ranges, GPTQ's codes.
    AwqGptq,
    /// The inputs' outliers moved into the weights, then rounded to nearest (SmoothQuant).
    SmoothQuant,
    /// SmoothQuant's scales, GPTQ's codes.
    SmoothQuantGptq,
    /// Nothing is done here; the checkpoint has its own.
    AsIs,
}

impl Method {
    /// The name used in records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Rtn => "rtn",
            Self::Gptq => "gptq",
            Self::Awq => "awq",
            Self::AwqGptq => "awq+gptq",
            Self::SmoothQuant => "smoothquant",
            Self::SmoothQuantGptq => "smoothquant+gptq",
            Self::AsIs => "as-is",
        }
    }

    /// Whether it looks at what the layers are given when the model reads a text.
    pub const fn is_calibrated(self) -> bool {
        !matches!(self, Self::None | Self::Rtn | Self::AsIs)
    }

    /// Whether it scales inputs by AWQ's search.
    pub const fn has_awq(self) -> bool {
        matches!(self, Self::Awq | Self::AwqGptq)
    }

    /// Whether it moves the inputs' outliers by SmoothQuant's rule.
    pub const fn has_smoothquant(self) -> bool {
        matches!(self, Self::SmoothQuant | Self::SmoothQuantGptq)
    }

    /// Whether it finds codes by GPTQ.
    pub const fn has_gptq(self) -> bool {
        matches!(self, Self::Gptq | Self::AwqGptq | Self::SmoothQuantGptq)
    }
}

/// A variant as named on the command line, such as `bf16`, `int8`, `w8a8`, `w4a16`, `w4a16:gptq:g64` or
/// `w8a8:smoothquant`.
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
    /// Whether codes have no zero points.
    pub symmetric: bool,
    /// Whether the range of each group is the one of least error, rather than that of its largest weight.
    pub mse: bool,
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
    /// How a variant is written, in words for a user.
    pub const NOTATION: &'static str = "as-is, bf16, f16, f32, int8, w8a8, w4a16 (with :g64 or :g32, :gptq, :awq, \
                                        :smoothquant, :asym, :mse)";

    /// The first two of these that are one, whatever they are called: `w4a16` and `w4a16:g128` are.
    pub fn repeated(variants: &[Self]) -> Option<[&Self; 2]> {
        variants.iter().enumerate().find_map(|(place, variant)| {
            let earlier = variants[..place].iter().find(|other| other.is(variant));
            Some([earlier?, variant])
        })
    }

    /// Whether both are the same but for their names.
    fn is(&self, other: &Self) -> bool {
        let Self {
            name: _,
            weights,
            activations,
            method,
            symmetric,
            mse,
        } = self;
        (weights, activations, method) == (&other.weights, &other.activations, &other.method)
            && (symmetric, mse) == (&other.symmetric, &other.mse)
    }

    /// A variant that keeps plain weights of this type.
    pub fn plain(dtype: DType) -> Self {
        Self {
            name: dtype.name().to_owned(),
            weights: WeightScheme::Plain(dtype),
            activations: Activations::Float,
            method: Method::None,
            symmetric: true,
            mse: false,
        }
    }

    /// Whether codes are found as weights are loaded, row by row and without data; other variants are made by
    /// quantising the model first.
    pub const fn is_made_on_load(&self) -> bool {
        matches!(self.method, Method::None | Method::Rtn | Method::AsIs)
            && self.symmetric
            && !self.mse
    }

    /// How codes are found, in the words of a record.
    pub fn method_name(&self) -> String {
        let range = if self.mse { ", mse ranges" } else { "" };
        format!("{}{range}", self.method.name())
    }

    /// The variant that leaves a checkpoint as it is.
    pub fn as_is() -> Self {
        Self {
            name: "as-is".to_owned(),
            weights: WeightScheme::AsIs,
            activations: Activations::AsIs,
            method: Method::AsIs,
            symmetric: true,
            mse: false,
        }
    }

    /// The scheme in the terms of a record; `None` where only the checkpoint knows it.
    pub fn scheme(&self) -> Option<QuantScheme> {
        let (bits, group_size, symmetric) = match self.weights {
            WeightScheme::Plain(dtype) => (dtype.size() * 8, None, None),
            WeightScheme::Int8 => (8, None, Some(self.symmetric)),
            WeightScheme::Int4 { group } => (4, Some(group), Some(self.symmetric)),
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
        let mut given: Vec<&str> = Vec::new();
        for option in parts {
            variant.apply(option)?;
            let same = |other: &&&str| matter(other) == matter(option);
            match given.iter().find(same) {
                Some(other) if *other == option => {
                    return Err(format!("variant '{s}' says '{option}' twice"));
                }
                Some(other) => {
                    return Err(format!(
                        "variant '{s}': '{other}' and '{option}' exclude each other: leave one out"
                    ));
                }
                None => given.push(option),
            }
        }
        variant.check()?;
        Ok(variant)
    }
}

/// What an option of a variant decides; two options that decide the same exclude each other.
fn matter(option: &str) -> &str {
    match option {
        "rtn" | "gptq" => "how codes are chosen",
        "awq" | "smoothquant" => "how inputs are scaled",
        "g128" | "g64" | "g32" => "the group",
        other => other,
    }
}

impl Variant {
    fn quantised(name: &str, weights: WeightScheme, activations: Activations) -> Self {
        Self {
            name: name.to_owned(),
            weights,
            activations,
            method: Method::Rtn,
            symmetric: true,
            mse: false,
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
            ("gptq", _) => {
                self.method = match self.method {
                    Method::Awq => Method::AwqGptq,
                    Method::SmoothQuant => Method::SmoothQuantGptq,
                    _ => Method::Gptq,
                };
                Ok(())
            }
            ("awq", _) => {
                self.method = match self.method {
                    Method::Gptq => Method::AwqGptq,
                    _ => Method::Awq,
                };
                Ok(())
            }
            ("smoothquant", _) => {
                self.method = match self.method {
                    Method::Gptq => Method::SmoothQuantGptq,
                    _ => Method::SmoothQuant,
                };
                Ok(())
            }
            ("asym", _) => {
                self.symmetric = false;
                Ok(())
            }
            ("mse", _) => {
                self.mse = true;
                Ok(())
            }
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
                "variant '{name}': unknown option '{option}': expected rtn, gptq, awq, smoothquant, asym, mse, or g128, g64, \
                 g32 with w4a16"
            )),
        }
    }

    /// Refuses options that do not go together.
    fn check(&self) -> Result<(), String> {
        let int8_inputs = self.activations == Activations::Int8PerToken;
        let fault = if self.method.has_smoothquant() && !int8_inputs {
            "smoothquant is for inputs in eight bits: use w8a8"
        } else if self.method.has_awq() && int8_inputs {
            "awq is for inputs as they are: use w4a16 or int8"
        } else if self.method.has_awq() && self.mse {
            "awq finds the ranges itself: leave mse out"
        } else if !self.symmetric && int8_inputs {
            "products of eight-bit inputs have no zero points: leave asym out"
        } else {
            return Ok(());
        };
        Err(format!("variant '{}': {fault}", self.name))
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
        let asym: Variant = "w4a16:awq:gptq:asym:g32".parse().unwrap();
        assert_eq!((asym.method, asym.symmetric), (Method::AwqGptq, false));
        assert_eq!(asym.scheme().unwrap().symmetric, Some(false));
        let smooth: Variant = "w8a8:smoothquant:mse".parse().unwrap();
        assert_eq!(smooth.method_name(), "smoothquant, mse ranges");
        for (name, on_load) in [
            ("bf16", true),
            ("w4a16:rtn", true),
            ("w4a16:mse", false),
            ("int8:asym", false),
            ("int8:gptq", false),
        ] {
            assert_eq!(name.parse::<Variant>().unwrap().is_made_on_load(), on_load);
        }
        for bad in [
            "",
            "w4",
            "bf16:g64",
            "bf16:gptq",
            "int8:g64",
            "w4a16:g16",
            "w4a16:magic",
            "w4a16:smoothquant",
            "w8a8:awq",
            "w8a8:asym",
            "w4a16:awq:mse",
            "as-is:g64",
        ] {
            assert!(bad.parse::<Variant>().is_err(), "{bad}");
        }
    }

    #[test]
    fn options_come_once_and_in_any_order() {
        for (name, said) in [
            ("w4a16:g64:g32", "'g64' and 'g32' exclude each other"),
            ("w4a16:g64:g64", "says 'g64' twice"),
            ("w4a16:asym:asym", "says 'asym' twice"),
            ("w4a16:rtn:gptq", "'rtn' and 'gptq'"),
            ("w8a8:awq:smoothquant", "'awq' and 'smoothquant'"),
        ] {
            let error = name.parse::<Variant>().unwrap_err();
            assert!(error.contains(name) && error.contains(said), "{error}");
        }
        for (one, other) in [
            ("w4a16:gptq:awq:g64", "w4a16:g64:awq:gptq"),
            ("w8a8:gptq:smoothquant", "w8a8:smoothquant:gptq"),
            ("w4a16", "w4a16:rtn:g128"),
            ("int8", "w8a16"),
        ] {
            let both = [one, other].map(|name| name.parse::<Variant>().unwrap());
            let found = Variant::repeated(&both).map(|pair| pair.map(|v| v.name.as_str()));
            assert_eq!(found, Some([one, other]));
        }
        let distinct = ["bf16", "int8", "w4a16", "w4a16:g64", "w4a16:asym"];
        let distinct = distinct.map(|name| name.parse::<Variant>().unwrap());
        assert_eq!(Variant::repeated(&distinct), None);
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
