//! Checkpoints that are quantised already: which variants are worth running, and what to tell about them.

use super::plan::EngineKind;
use crate::error::Result;
use crate::model::{Model, ModelSpec, StoredScheme};
use crate::scheme::{Variant, WeightScheme};

/// What is worth saying before `variant` of `model` runs: what a quantised checkpoint is, and what becomes of it.
///
/// # Errors
/// If a tensor is missing.
pub fn notice(model: &Model, variant: &Variant) -> Result<Option<String>> {
    let stored = model.weights.stored_scheme(&model.config)?;
    let rounded = model.weights.rounded_tables(&model.config)?;
    // Of other checkpoints nothing is hidden: their weights are plain.
    if model.config.quantization.is_none() && rounded.is_empty() {
        return Ok(None);
    }
    let what = in_words(&stored);
    let name = &model.name;
    Ok(Some(match variant.weights {
        WeightScheme::AsIs if rounded.is_empty() => format!("{name} as it is: {what}"),
        WeightScheme::AsIs => {
            let tables = rounded.join(" and ");
            format!("{name} as it is: {what}, with {tables} rounded to bf16")
        }
        _ if stored.symmetric.is_none() => format!(
            "{name} is stored as {}: {variant} is made of its dequantised weights",
            stored.source
        ),
        _ => format!("{name} is stored as {what}: {variant} is made of its dequantised weights"),
    }))
}

/// The variants to run where none are named: `plain`, or `quantised` if any of the models is a quantised checkpoint. Other
/// engines than this program's own have the first of `plain` alone: they make no variants.
///
/// # Errors
/// As [`Model::open`].
pub fn default_variants(
    models: &[ModelSpec],
    engine: EngineKind,
    plain: &[&str],
    quantised: &[&str],
) -> Result<Vec<Variant>> {
    let own = engine == EngineKind::Candlepower;
    let mut names = if own {
        plain
    } else {
        plain.get(..1).unwrap_or(plain)
    };
    for spec in models.iter().filter(|_| own) {
        if Model::open(spec)?.config.quantization.is_some() {
            names = quantised;
        }
    }
    let variants = names.iter().map(|name| name.parse());
    variants
        .collect::<Result<_, String>>()
        .map_err(crate::error::Error::Internal)
}

fn in_words(stored: &StoredScheme) -> String {
    let group = stored
        .group
        .map_or(String::new(), |group| format!(" in groups of {group}"));
    let levels = match stored.symmetric {
        Some(false) => ", asymmetric",
        _ => "",
    };
    let inputs = match stored.activations.as_str() {
        "float" => String::new(),
        inputs => format!(", inputs {inputs}"),
    };
    format!(
        "{} ({} bits{group}{levels}{inputs})",
        stored.method, stored.bits
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::WeightsChoice;

    fn spec(source: &str) -> ModelSpec {
        ModelSpec {
            source: source.to_owned(),
            revision: None,
            weights: WeightsChoice::AsStored,
            tokenizer: None,
        }
    }

    const QUANTISED: &str = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/tiny-llama/gptq-g32-sym"
    );

    #[test]
    fn a_quantised_checkpoint_runs_as_it_is_unless_told_otherwise() {
        let defaults = |models: &[&str], engine| {
            let models: Vec<ModelSpec> = models.iter().map(|source| spec(source)).collect();
            let quantised = ["bf16", "as-is"];
            let variants =
                default_variants(&models, engine, &["bf16", "int8"], &quantised).unwrap();
            variants
                .into_iter()
                .map(|variant| variant.name)
                .collect::<Vec<_>>()
        };
        let own = EngineKind::Candlepower;
        assert_eq!(defaults(&["tiny"], own), ["bf16", "int8"]);
        assert_eq!(defaults(&["tiny", QUANTISED], own), ["bf16", "as-is"]);
        // What candle runs is one thing.
        for engine in [EngineKind::Candle, EngineKind::CandleGguf] {
            assert_eq!(defaults(&["tiny", QUANTISED], engine), ["bf16"]);
        }
    }

    #[test]
    fn what_becomes_of_a_checkpoint_is_said() {
        let said = |source: &str, variant: &str| {
            let model = Model::open(&spec(source)).unwrap();
            notice(&model, &variant.parse().unwrap()).unwrap()
        };
        assert_eq!(said("tiny", "int8"), None);
        let as_is = said(QUANTISED, "as-is").unwrap();
        assert!(
            as_is.contains("as it is: gptq (4 bits in groups of 32)"),
            "{as_is}"
        );
        let other = said(QUANTISED, "int8").unwrap();
        assert!(
            other.contains("int8 is made of its dequantised weights"),
            "{other}"
        );
    }
}
