//! Published shapes by name, so that a model's speed can be measured on dummy weights without a download.

use std::path::PathBuf;

use serde::Deserialize;

use super::config::ModelConfig;
use crate::error::{Error, Result};

/// A published model: what it is called, where its weights are, and its configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Preset {
    /// The name on the command line, in lower case.
    pub name: String,
    /// Where the weights can be fetched, as `org/name`.
    pub hub: String,
    /// Its shape.
    pub config: ModelConfig,
}

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../models/presets/", $name, ".toml")))),*]
    };
}

const FILES: [(&str, &str); 18] = files![
    "llama-2-7b",
    "llama-3-8b",
    "llama-3.1-70b",
    "llama-3.1-8b",
    "llama-3.2-1b",
    "llama-3.2-3b",
    "qwen2.5-0.5b",
    "qwen2.5-1.5b",
    "qwen2.5-3b",
    "qwen2.5-7b",
    "qwen3-0.6b",
    "qwen3-1.7b",
    "qwen3-14b",
    "qwen3-32b",
    "qwen3-4b",
    "qwen3-8b",
    "smollm2-135m",
    "tinyllama-1.1b",
];

/// The preset of this name, in any case; nothing if there is none.
///
/// # Errors
/// [`Error::Data`] if the preset's own file is broken.
pub(super) fn find(name: &str) -> Result<Option<Preset>> {
    let name = name.to_ascii_lowercase();
    let file = FILES.iter().find(|(known, _)| *known == name);
    file.map(|(name, text)| parse(name, text)).transpose()
}

/// Every preset, in the order of names.
///
/// # Errors
/// [`Error::Data`] if a preset's own file is broken.
pub fn presets() -> Result<Vec<Preset>> {
    FILES.iter().map(|(name, text)| parse(name, text)).collect()
}

/// The names, in order.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    FILES.iter().map(|(name, _)| *name)
}

fn parse(name: &str, text: &str) -> Result<Preset> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        hub: String,
        /// The keys of a `config.json`.
        config: serde_json::Value,
    }
    let path = PathBuf::from(format!("presets/{name}.toml"));
    let file: File = toml::from_str(text).map_err(|e| Error::data(&path, e))?;
    Ok(Preset {
        name: name.to_owned(),
        hub: file.hub,
        config: ModelConfig::from_json(&path, &file.config)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheme::DType;

    /// Name, all parameters, linear parameters, bytes of cache per token at 16 bits: published counts.
    const COUNTS: [(&str, u64, u64, u64); 18] = [
        ("qwen3-0.6b", 596_049_920, 440_401_920, 114_688),
        ("qwen3-1.7b", 1_720_574_976, 1_409_286_144, 114_688),
        ("qwen3-4b", 4_022_468_096, 3_633_315_840, 147_456),
        ("qwen3-8b", 8_190_735_360, 6_945_767_424, 147_456),
        ("qwen3-14b", 14_768_307_200, 13_212_057_600, 163_840),
        ("qwen3-32b", 32_762_123_264, 31_205_621_760, 262_144),
        ("qwen2.5-0.5b", 494_032_768, 357_826_560, 12_288),
        ("qwen2.5-1.5b", 1_543_714_304, 1_310_195_712, 28_672),
        ("qwen2.5-3b", 3_085_938_688, 2_774_532_096, 36_864),
        ("qwen2.5-7b", 7_615_616_512, 6_525_288_448, 57_344),
        ("llama-3.2-1b", 1_235_814_400, 973_078_528, 32_768),
        ("llama-3.2-3b", 3_212_749_824, 2_818_572_288, 114_688),
        ("llama-3.1-8b", 8_030_261_248, 6_979_321_856, 131_072),
        ("llama-3-8b", 8_030_261_248, 6_979_321_856, 131_072),
        ("llama-3.1-70b", 70_553_706_496, 68_451_041_280, 327_680),
        ("llama-2-7b", 6_738_415_616, 6_476_005_376, 524_288),
        ("smollm2-135m", 134_515_008, 106_168_320, 23_040),
        ("tinyllama-1.1b", 1_100_048_384, 968_884_224, 22_528),
    ];

    #[test]
    fn presets_have_the_published_counts() {
        for (name, parameters, linear, kv) in COUNTS {
            let config = find(name).unwrap().expect(name).config;
            assert_eq!(config.parameters(), parameters, "{name}");
            assert_eq!(config.linear_parameters(), linear, "{name}");
            assert_eq!(config.kv_bytes_per_token(DType::F16), kv, "{name}");
        }
    }

    #[test]
    fn every_preset_parses_and_names_are_found_in_any_case() {
        let all = presets().unwrap();
        assert_eq!(all.len(), COUNTS.len());
        assert!(all.is_sorted_by(|a, b| a.name < b.name));
        assert_eq!(find("QWEN3-8B").unwrap().unwrap().hub, "Qwen/Qwen3-8B");
        assert_eq!(find("qwen3-9b").unwrap(), None);
    }
}
