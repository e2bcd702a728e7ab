//! What a checkpoint holds beside the tensors of its configuration: nothing reads it, so it is told of. The
//! transformers library warns of the same.

use std::collections::{BTreeSet, HashSet};

use super::config::ModelConfig;
use super::quantised::Quantised;
use super::safetensors::Safetensors;
use crate::error::Result;

/// Most kinds of tensors that are named.
const SHOWN: usize = 4;

/// Tables of the rotary embedding that older checkpoints of Llama hold; they follow from the configuration.
const ROTARY: &str = ".rotary_emb.inv_freq";

/// What of a checkpoint folder is not used, in words; nothing if all of it is.
pub(super) fn of_safetensors(
    files: &Safetensors,
    layers: Option<&Quantised>,
    config: &ModelConfig,
) -> Result<Option<String>> {
    let used = config.tensors().into_iter().map(|tensor| tensor.name);
    let used: HashSet<String> = used.collect();
    let mut unused = Vec::new();
    for name in files.names() {
        let known = used.contains(name)
            || layers.is_some_and(|layers| layers.owns(name))
            // Known to be the embedding once more.
            || config.tied && name == "lm_head.weight"
            || name.ends_with(ROTARY);
        // Quantisers give biases to layers that have none: of zeros, which add nothing.
        if !(known || name.ends_with(".bias") && files.is_zero(name)?) {
            unused.push(name);
        }
    }
    Ok(in_words(&unused, "model.layers.", config.layers))
}

/// Tensors by their names, those of a layer beginning with `prefix` and its number, beside the `layers` of a model.
pub(super) fn in_words(unused: &[&str], prefix: &str, layers: usize) -> Option<String> {
    let mut beyond = BTreeSet::new();
    let mut kinds = BTreeSet::new();
    for &name in unused {
        let layer = name.strip_prefix(prefix).and_then(|rest| {
            let (number, rest) = rest.split_once('.')?;
            Some((number.parse::<usize>().ok()?, rest))
        });
        match layer {
            Some((number, _)) if number >= layers => {
                beyond.insert(number);
            }
            Some((_, rest)) => {
                kinds.insert(format!("{prefix}*.{rest}"));
            }
            None => {
                kinds.insert(name.to_owned());
            }
        }
    }
    let mut parts = Vec::new();
    if let (Some(first), Some(last)) = (beyond.first(), beyond.last()) {
        let which = match beyond.len() {
            1 => format!("layer {first}"),
            count => format!("{count} layers from {first} to {last}"),
        };
        parts.push(format!(
            "{which}, where the configuration has {layers} (counted from 0)"
        ));
    }
    let hidden = kinds.len().saturating_sub(SHOWN);
    parts.extend(kinds.into_iter().take(SHOWN));
    if hidden > 0 {
        parts.push(format!("{hidden} more kinds"));
    }
    match unused.len() {
        0 => None,
        1 => Some(format!("1 tensor is not used: {}", parts.join("; "))),
        count => Some(format!(
            "{count} tensors are not used: {}",
            parts.join("; ")
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_are_told_of_by_kind_and_layers_by_number() {
        let said = |names: &[&str]| in_words(names, "model.layers.", 2);
        assert_eq!(said(&[]), None);
        assert_eq!(
            said(&["extra"]).unwrap(),
            "1 tensor is not used: extra".to_owned()
        );
        let biases = [
            "model.layers.0.mlp.up_proj.bias",
            "model.layers.1.mlp.up_proj.bias",
        ];
        assert_eq!(
            said(&biases).unwrap(),
            "2 tensors are not used: model.layers.*.mlp.up_proj.bias"
        );
        let layers = ["model.layers.2.a", "model.layers.2.b", "model.layers.3.a"];
        assert_eq!(
            said(&layers).unwrap(),
            "3 tensors are not used: 2 layers from 2 to 3, where the configuration has 2 (counted from 0)"
        );
        let many = said(&["a", "b", "c", "d", "e", "f"]).unwrap();
        assert!(many.ends_with("a; b; c; d; 2 more kinds"), "{many}");
    }
}
