//! A checkpoint folder as the transformers library writes it: `config.json`, safetensors, `tokenizer.json`.

use std::path::{Path, PathBuf};

use super::blob::Blob;
use super::config::ModelConfig;
use super::config_json::{names_dtype, token_ids};
use super::json::read_value;
use super::quantised::{self, Quantised};
use super::safetensors::Safetensors;
use super::tokenizer::Tokenizer;
use super::weights::Weights;
use crate::error::{Error, Result};

pub(super) const CONFIG: &str = "config.json";
pub(super) const GENERATION_CONFIG: &str = "generation_config.json";
pub(super) const TOKENIZER: &str = "tokenizer.json";
pub(super) const WEIGHTS: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// The names of the two matrices that a tied model has one of.
const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// How the names of weights begin that PyTorch saved, and how they end.
const PICKLES: ([&str; 3], [&str; 3]) = (
    ["consolidated", "model", "pytorch_model"],
    ["bin", "pt", "pth"],
);

/// What a quantised output head has instead of [`HEAD`], where its codes have a name of their own.
const PACKED_HEADS: [&str; 2] = ["lm_head.qweight", "lm_head.weight_packed"];

/// The configuration of a folder; the end tokens are those of `config.json` and of `generation_config.json`, since only
/// the latter names the end of a turn in some chat models.
pub(super) fn read_config(folder: &Path) -> Result<ModelConfig> {
    let path = folder.join(CONFIG);
    if !path.exists() {
        return Err(no_config(folder)?);
    }
    let mut config = read_config_file(&path)?;
    let path = folder.join(GENERATION_CONFIG);
    if path.is_file() {
        for id in token_ids(&path, &read_value(&path)?, "eos_token_id")? {
            if !config.eos.contains(&id) {
                config.eos.push(id);
            }
        }
        config.check(&path)?;
    }
    Ok(config)
}

/// The error of a folder without a [`CONFIG`], by what it holds instead.
fn no_config(folder: &Path) -> Result<Error> {
    let files = list(folder)?;
    let adapter = folder.join("adapter_config.json").is_file();
    let what = match files.iter().find(|path| has_ending(path, "gguf")) {
        _ if adapter => format!(
            "holds no {CONFIG}: it is an adapter (adapter_config.json), which belongs to another model: merge the two, as \
             with merge_and_unload of the peft library, and name the result"
        ),
        Some(file) => format!(
            "holds no {CONFIG}, but a GGUF file: name that, as in --model {}",
            file.display()
        ),
        None => format!("holds no {CONFIG}, which says what the model is"),
    };
    Ok(Error::data(folder, what))
}

/// The configuration in one `config.json`.
pub(super) fn read_config_file(path: &Path) -> Result<ModelConfig> {
    ModelConfig::from_json(path, &read_value(path)?)
}

/// The tokenizer of a folder, if it has one.
pub(super) fn read_tokenizer(folder: &Path, config: &ModelConfig) -> Result<Option<Tokenizer>> {
    let path = folder.join(TOKENIZER);
    if !path.is_file() {
        return Ok(None);
    }
    Tokenizer::from_file(&path, config).map(Some)
}

/// Opens the weights of a folder and checks them against `config`, whose precision is theirs where the file is silent,
/// and which is not tied where they hold a head of their own. The second result lists the files.
pub(super) fn open_weights(
    folder: &Path,
    config: &mut ModelConfig,
) -> Result<(Weights, Vec<PathBuf>)> {
    let mut files = find_weights(folder)?;
    if config.tied {
        config.tied = tie(&mut files, config)?;
    } else {
        expect_head(&files)?;
    }
    let paths = files.paths();
    let weights = match quantised::settings(folder, &folder.join(CONFIG))? {
        None => Weights::safetensors(files),
        Some((path, settings)) => {
            config.quantization = quantised::method_of(&settings).map(str::to_owned);
            let layers = Quantised::new(&path, &settings, &files, config)?;
            Weights::quantised(files, layers)
        }
    };
    weights.check(config)?;
    let raw = read_value(&folder.join(CONFIG))?;
    if !names_dtype(&raw) {
        config.dtype = weights.precision(EMBEDDING)?;
    }
    Ok((weights, paths))
}

/// Whether a model that calls itself tied is, by what is stored; as transformers 5 does. A head that differs from the
/// embedding, or is quantised, is used; one that is stored without an embedding is both.
fn tie(files: &mut Safetensors, config: &ModelConfig) -> Result<bool> {
    if PACKED_HEADS.iter().any(|name| files.contains(name)) {
        return Ok(false);
    }
    match (files.contains(EMBEDDING), files.contains(HEAD)) {
        (true, true) => files.are_equal(EMBEDDING, HEAD),
        (false, true) => {
            // One that cannot be an embedding stays what it is: then the embedding is what is missing.
            let fits = files.shape(HEAD)? == [config.vocab, config.hidden];
            if fits && files.precision(HEAD).is_ok() {
                files.rename(HEAD, EMBEDDING);
            }
            Ok(true)
        }
        (_, false) => Ok(true),
    }
}

/// The files of a folder, by their names in order.
fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let fault = |e| Error::reading(folder, "cannot read", e);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(fault)? {
        let path = entry.map_err(fault)?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The name of a file of weights that PyTorch saved.
fn pickle(path: &Path) -> Option<&str> {
    let (beginnings, endings) = PICKLES;
    let name = path.file_name()?.to_str()?;
    let begins = beginnings.iter().any(|part| name.starts_with(part));
    let ends = endings.iter().any(|ending| has_ending(path, ending));
    (begins && ends).then_some(name)
}

fn has_ending(path: &Path, ending: &str) -> bool {
    path.extension().is_some_and(|e| e == ending)
}

/// Refuses an untied model without an output head.
fn expect_head(files: &Safetensors) -> Result<()> {
    let mut heads = PACKED_HEADS.iter().chain([&HEAD]);
    if heads.any(|name| files.contains(name)) {
        return Ok(());
    }
    Err(Error::data(
        files.path_of(HEAD),
        format!(
            "tensor '{HEAD}': missing: if the model's output head is its embedding, set 'tie_word_embeddings' to true in \
             its {CONFIG}"
        ),
    ))
}

fn find_weights(folder: &Path) -> Result<Safetensors> {
    let single = folder.join(WEIGHTS);
    if single.is_file() {
        return Safetensors::single(Blob::open(&single)?);
    }
    let index = folder.join(INDEX);
    if index.is_file() {
        return Safetensors::sharded(&index);
    }
    let files = list(folder)?;
    let found: Vec<&PathBuf> = files
        .iter()
        .filter(|path| has_ending(path, "safetensors"))
        .collect();
    match (found.as_slice(), files.iter().find_map(|path| pickle(path))) {
        ([one], _) => Safetensors::single(Blob::open(one)?),
        ([], Some(pickle)) => Err(Error::data(
            folder,
            format!(
                "holds no safetensors file, but weights as a pickle ({pickle}), a program that reading it would run: \
                 convert them, as by from_pretrained and then save_pretrained of the transformers library"
            ),
        )),
        ([], None) => Err(Error::data(folder, "holds no safetensors file")),
        _ => Err(Error::data(
            folder,
            format!(
                "holds {} safetensors files, but no {INDEX} that lists them",
                found.len()
            ),
        )),
    }
}
