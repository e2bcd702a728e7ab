//! Which linear layer gets which form, and how a checkpoint's configuration says so.

use std::collections::BTreeSet;
use std::str::FromStr;

use super::grid::Form;
use super::layer::{MODULES, Site, module};
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::model::compressed_tensors::{
    ActOrder, Arguments, Format, Number, QuantizationConfig, Scheme,
};
use crate::scheme::{Activations, CodeFormat, DType, Variant, WeightScheme};

/// Linear layers on the command line: a decoder layer by its number, or one of its sites, as in `3` or `3.down`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The decoder layer, from 0.
    pub layer: usize,
    /// One of its sites; all of them where `None`.
    pub site: Option<Site>,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.site {
            None => write!(f, "{}", self.layer),
            Some(site) => write!(f, "{}.{}", self.layer, site.name()),
        }
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let (layer, site) = match s.split_once('.') {
            None => (s, None),
            Some((layer, site)) => (layer, Some(site)),
        };
        let number = layer.parse().ok();
        let named = |name: &str| Site::ALL.into_iter().find(|site| site.name() == name);
        match (number, site, site.and_then(named)) {
            (Some(layer), None, _) => Ok(Self { layer, site: None }),
            (Some(layer), _, Some(site)) => Ok(Self {
                layer,
                site: Some(site),
            }),
            _ => Err(format!(
                "'{s}' names no layer: expected the number of a decoder layer, as in 3, or one of its parts, as in \
                 3.qkv, 3.o, 3.gate_up or 3.down"
            )),
        }
    }
}

/// The layers that are not quantised as the variant has it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Kept {
    /// Eight bits in the variant's place; plain 16 bits otherwise.
    pub eight_bits: bool,
    sites: BTreeSet<(usize, Site)>,
}

impl Kept {
    /// Keeps `places` in 16 bits, or in 8.
    pub fn new(places: &[Place], eight_bits: bool) -> Self {
        let sites = places.iter().flat_map(|place| {
            let of_layer = Site::ALL.into_iter();
            of_layer
                .filter(|&site| place.site.is_none_or(|named| named == site))
                .map(|site| (place.layer, site))
        });
        Self {
            eight_bits,
            sites: sites.collect(),
        }
    }

    /// Whether this site is kept.
    pub(super) fn contains(&self, layer: usize, site: Site) -> bool {
        self.sites.contains(&(layer, site))
    }

    /// In a stable order, for a key.
    pub(super) fn describe(&self) -> String {
        format!("{:?} {}", self.sites, self.eight_bits)
    }
}

/// The form of every linear layer of a model.
pub(super) struct Assignment<'a> {
    pub(super) config: &'a ModelConfig,
    pub(super) variant: &'a Variant,
    pub(super) kept: &'a Kept,
    /// The type of everything that is not quantised, and of scales.
    pub(super) dtype: DType,
}

impl Assignment<'_> {
    /// Checks that every kept layer exists and every group fits.
    pub(super) fn check(&self) -> Result<()> {
        if let Some((layer, _)) = self
            .kept
            .sites
            .iter()
            .find(|(l, _)| *l >= self.config.layers)
        {
            return Err(Error::Usage(format!(
                "--layers names layer {layer}: the model has layers 0 to {}",
                self.config.layers - 1
            )));
        }
        if self.kept.eight_bits
            && self.variant.weights == WeightScheme::Int8
            && !self.kept.sites.is_empty()
        {
            return Err(Error::Usage(
                "--keep-bits 8 is for four-bit schemes: this one has eight bits everywhere".into(),
            ));
        }
        for layer in 0..self.config.layers {
            for site in Site::ALL {
                self.form(layer, site)?;
            }
        }
        Ok(())
    }

    /// The form of a site's linear layers; `None` where they stay plain.
    pub(super) fn form(&self, layer: usize, site: Site) -> Result<Option<Form>> {
        let k = match site {
            Site::Qkv | Site::GateUp => self.config.hidden,
            Site::Output => self.config.q_rows(),
            Site::Down => self.config.intermediate,
        };
        let kept = self.kept.contains(layer, site);
        let name = module(layer, site.members().start);
        let (format, group) = match (self.variant.weights, kept) {
            (WeightScheme::Plain(_), _) => return Ok(None),
            (_, true) if !self.kept.eight_bits => return Ok(None),
            (WeightScheme::Int8, _) | (_, true) => (CodeFormat::I8, k),
            (WeightScheme::Int4 { .. }, false) => {
                (CodeFormat::U4, self.variant.group_for(&name, k)?)
            }
            (WeightScheme::AsIs, false) => {
                return Err(Error::Usage(format!(
                    "'{}' is no scheme to quantise to",
                    self.variant
                )));
            }
        };
        Ok(Some(Form {
            format,
            group,
            symmetric: self.variant.symmetric,
            scales: self.dtype,
        }))
    }

    /// The forms of a layer's sites.
    pub(super) fn forms(&self, layer: usize) -> Result<[Option<Form>; 4]> {
        Ok([
            self.form(layer, Site::Qkv)?,
            self.form(layer, Site::Output)?,
            self.form(layer, Site::GateUp)?,
            self.form(layer, Site::Down)?,
        ])
    }

    /// How tensors are stored: inputs in eight bits come with a byte per code, all else packed into words.
    pub(super) fn format(&self) -> Format {
        match self.variant.activations {
            Activations::Int8PerToken => Format::IntQuantized,
            _ => Format::PackQuantized,
        }
    }

    /// What `config.json` says under `quantization_config`.
    pub(super) fn config(&self) -> Result<QuantizationConfig> {
        let mut ignore = vec!["lm_head".to_owned()];
        // Every form with the modules that have it, in the order of their first one.
        let mut forms: Vec<(Form, Vec<(usize, usize)>)> = Vec::new();
        for layer in 0..self.config.layers {
            for site in Site::ALL {
                let form = self.form(layer, site)?;
                for member in site.members() {
                    let Some(form) = form else {
                        ignore.push(module(layer, member));
                        continue;
                    };
                    // One scale per row is one scheme, however long the rows are.
                    let group = match form.format {
                        CodeFormat::U4 => form.group,
                        _ => 0,
                    };
                    let form = Form { group, ..form };
                    match forms.iter_mut().find(|(other, _)| *other == form) {
                        Some((_, modules)) => modules.push((layer, member)),
                        None => forms.push((form, vec![(layer, member)])),
                    }
                }
            }
        }
        let groups = forms.iter().enumerate().map(|(i, (form, modules))| {
            let mut weights = Arguments::integers(
                form.format.bits() as u32,
                form.symmetric,
                (form.group > 0).then_some(form.group),
            );
            // Older readers allow an order of columns for groups alone.
            if self.variant.method.has_gptq() && form.group > 0 {
                weights.actorder = Some(ActOrder::Weight);
            }
            let inputs = match self.variant.activations {
                Activations::Int8PerToken => Some(Arguments::per_token(Number::Int)),
                _ => None,
            };
            let mut scheme = Scheme::of_linear(weights, inputs);
            // A single form is that of the class; of several, each names its modules.
            if forms.len() > 1 {
                scheme.targets = self.targets(modules);
            }
            (format!("group_{i}"), scheme)
        });
        let groups: Vec<_> = groups.collect();
        let first = groups.first().map(|(_, scheme)| scheme.clone());
        let Some(first) = first else {
            return Err(Error::Usage(
                "every layer is kept: nothing is left to quantise".into(),
            ));
        };
        let mut config = QuantizationConfig::of_one(self.format(), first, ignore);
        config.config_groups = groups;
        Ok(config)
    }

    /// Modules by a pattern where every layer has them, else by name.
    fn targets(&self, modules: &[(usize, usize)]) -> Vec<String> {
        let mut targets = Vec::new();
        for (member, name) in MODULES.iter().enumerate() {
            let layers: Vec<usize> = modules
                .iter()
                .filter(|(_, other)| *other == member)
                .map(|(layer, _)| *layer)
                .collect();
            if layers.len() == self.config.layers {
                targets.push(format!("re:.*\\.{}$", name.replace('.', "\\.")));
            } else {
                targets.extend(layers.into_iter().map(|layer| module(layer, member)));
            }
        }
        targets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_and_written_alike() {
        for text in ["0", "17", "3.qkv", "3.o", "12.gate_up", "1.down"] {
            assert_eq!(text.parse::<Place>().unwrap().to_string(), text);
        }
        for bad in ["", "x", "3.", "3.up", ".down", "-1"] {
            assert!(bad.parse::<Place>().is_err(), "{bad}");
        }
        let kept = Kept::new(&["2".parse().unwrap(), "4.down".parse().unwrap()], false);
        assert!(kept.contains(2, Site::Output) && kept.contains(4, Site::Down));
        assert!(!kept.contains(4, Site::Qkv) && !kept.contains(3, Site::Down));
    }
}
