//! From what the user named to an opened model.

use std::path::{Path, PathBuf};

use super::config::ModelConfig;
use super::tokenizer::Tokenizer;
use super::weights::Weights;
use super::{directory, gguf, hub, preset, tiny};
use crate::error::{Error, Result};
use crate::scheme::DType;

/// What to open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSpec {
    /// `tiny`, a folder, a `.gguf` file, a `config.json`, the name of a preset, or a hub id such as `org/name`.
    pub source: String,
    /// A branch, tag or commit of the hub; its main branch where absent.
    pub revision: Option<String>,
    /// Whether to read the weights or to make them up.
    pub weights: WeightsChoice,
    /// A `tokenizer.json` to use instead of the source's own.
    pub tokenizer: Option<PathBuf>,
}

/// Which weights an opened model has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightsChoice {
    /// Those of the source.
    AsStored,
    /// Made from a seed, with the source's shapes.
    Dummy {
        /// Chooses the weights.
        seed: u64,
    },
}

/// An opened model: its shape, its tokenizer and a handle to its weights, none of which has been read yet.
#[derive(Debug)]
pub struct Model {
    /// A short name: of the file or folder, the hub id, or the preset.
    pub name: String,
    /// Its shape.
    pub config: ModelConfig,
    /// Its weights.
    pub weights: Weights,
    /// Its tokenizer; absent where the source has none, as a preset.
    pub tokenizer: Option<Tokenizer>,
    /// What was opened.
    pub origin: Origin,
    /// What of its files is not used or does not fit together, each a sentence for the user.
    pub remarks: Vec<String>,
}

/// What a model was opened from, for records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The kind of source.
    pub kind: OriginKind,
    /// The files of the weights; empty where there are none.
    pub paths: Vec<PathBuf>,
    /// The commit of a hub repository.
    pub revision: Option<String>,
    /// Total size of those files in bytes.
    pub file_bytes: u64,
    /// The seed of dummy weights.
    pub dummy_seed: Option<u64>,
}

/// A kind of source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OriginKind {
    /// The model inside the binary.
    Embedded,
    /// A published shape without weights.
    Preset,
    /// A `config.json` without weights.
    ConfigFile,
    /// A folder of safetensors.
    Directory,
    /// A GGUF file.
    Gguf,
    /// A repository of the hub.
    Hub,
}

impl OriginKind {
    /// The name used in records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Preset => "preset",
            Self::ConfigFile => "config",
            Self::Directory => "directory",
            Self::Gguf => "gguf",
            Self::Hub => "hub",
        }
    }
}

impl Model {
    /// Opens a model: reads configuration, tokenizer and the headers of the weight files, and checks that every tensor is
    /// there with its shape. A name that exists as a path is that path; then come presets, then the hub.
    ///
    /// # Errors
    /// [`Error::Usage`] for a source that names nothing, a preset without dummy weights, or a revision of what has none;
    /// [`Error::Config`] for a model that is not supported; [`Error::Io`] and [`Error::Data`] for files that are missing or
    /// broken.
    pub fn open(spec: &ModelSpec) -> Result<Self> {
        let path = Path::new(&spec.source);
        if spec.source.eq_ignore_ascii_case(tiny::NAME) {
            open_tiny(spec)
        } else if path.is_dir() {
            open_folder(spec, path, last_part(path), OriginKind::Directory)
        } else if path.is_file() {
            open_file(spec, path)
        } else if let Some(preset) = preset::find(&spec.source)? {
            open_preset(spec, preset)
        } else if hub::is_id(&spec.source) {
            open_hub(spec)
        } else {
            Err(nothing_called(&spec.source))
        }
    }
}

fn nothing_called(source: &str) -> Error {
    let path = Path::new(source);
    let ending = path.extension().and_then(|e| e.to_str());
    let names_file = matches!(ending, Some("gguf" | "json" | "safetensors"));
    if names_file || path.components().count() > 1 {
        return Error::data(path, "no such file or folder");
    }
    Error::Usage(format!(
        "no model is called '{source}': expected tiny, a folder, a .gguf file, a hub id such as org/name, or a preset ({})",
        preset::names().collect::<Vec<_>>().join(", ")
    ))
}

fn open_tiny(spec: &ModelSpec) -> Result<Model> {
    let config = tiny::config()?;
    let tokenizer = Some(tiny::tokenizer(&config)?);
    let stored = match spec.weights {
        WeightsChoice::AsStored => Some((tiny::weights(&config)?, Vec::new())),
        WeightsChoice::Dummy { .. } => None,
    };
    finish(
        spec,
        tiny::NAME.to_owned(),
        OriginKind::Embedded,
        config,
        stored,
        tokenizer,
    )
}

fn open_folder(spec: &ModelSpec, folder: &Path, name: String, kind: OriginKind) -> Result<Model> {
    let mut config = directory::read_config(folder)?;
    let stored = match spec.weights {
        WeightsChoice::AsStored => Some(directory::open_weights(folder, &mut config)?),
        WeightsChoice::Dummy { .. } => None,
    };
    let tokenizer = match spec.tokenizer {
        Some(_) => None,
        None => directory::read_tokenizer(folder, &config)?,
    };
    finish(spec, name, kind, config, stored, tokenizer)
}

fn open_file(spec: &ModelSpec, path: &Path) -> Result<Model> {
    match path.extension().and_then(|e| e.to_str()) {
        Some("gguf") => {
            let opened = gguf::open(path, spec.tokenizer.is_none())?;
            let stored = match spec.weights {
                WeightsChoice::AsStored => Some((opened.weights, vec![path.to_owned()])),
                WeightsChoice::Dummy { .. } => None,
            };
            let name = path
                .file_stem()
                .map_or_else(|| last_part(path), |s| s.to_string_lossy().into());
            finish(
                spec,
                name,
                OriginKind::Gguf,
                opened.config,
                stored,
                opened.tokenizer,
            )
        }
        Some("json") => {
            if spec.weights == WeightsChoice::AsStored {
                return Err(Error::Usage(format!(
                    "'{}' describes a model but holds no weights: give its folder, or add --weights dummy",
                    spec.source
                )));
            }
            let config = directory::read_config_file(path)?;
            let folder = path.parent().unwrap_or(Path::new("."));
            finish(
                spec,
                last_part(folder),
                OriginKind::ConfigFile,
                config,
                None,
                None,
            )
        }
        Some("safetensors") => Err(Error::Usage(format!(
            "'{}' is one file of a checkpoint: give its folder",
            spec.source
        ))),
        _ => Err(Error::Usage(format!(
            "'{}' is no model: expected a folder, a .gguf file or a config.json",
            spec.source
        ))),
    }
}

fn open_preset(spec: &ModelSpec, preset: preset::Preset) -> Result<Model> {
    if spec.weights == WeightsChoice::AsStored {
        return Err(Error::Usage(format!(
            "'{}' is a shape without weights: add --weights dummy to time it, or name the checkpoint {}",
            preset.name, preset.hub
        )));
    }
    finish(
        spec,
        preset.name,
        OriginKind::Preset,
        preset.config,
        None,
        None,
    )
}

fn open_hub(spec: &ModelSpec) -> Result<Model> {
    let with_weights = spec.weights == WeightsChoice::AsStored;
    let snapshot = hub::fetch_model(&spec.source, spec.revision.as_deref(), with_weights)?;
    let mut model = open_folder(spec, &snapshot.folder, spec.source.clone(), OriginKind::Hub)?;
    model.origin.revision = Some(snapshot.commit);
    Ok(model)
}

/// Puts a model together; without `stored` weights it gets dummies.
fn finish(
    spec: &ModelSpec,
    name: String,
    kind: OriginKind,
    mut config: ModelConfig,
    stored: Option<(Weights, Vec<PathBuf>)>,
    own_tokenizer: Option<Tokenizer>,
) -> Result<Model> {
    if let (Some(revision), false) = (&spec.revision, kind == OriginKind::Hub) {
        return Err(Error::Usage(format!(
            "--revision {revision} is for a model of the hub, and '{}' is none: leave it out",
            spec.source
        )));
    }
    let dummy_seed = match spec.weights {
        WeightsChoice::AsStored => None,
        WeightsChoice::Dummy { seed } => Some(seed),
    };
    if stored.is_none() {
        // What is made up is plain, whatever the source holds.
        config.quantization = None;
    }
    let (weights, paths) = stored.unwrap_or_else(|| {
        (
            Weights::dummies(&config, dummy_seed.unwrap_or_default()),
            Vec::new(),
        )
    });
    let tokenizer = match &spec.tokenizer {
        Some(path) => Some(Tokenizer::from_file(path, &config)?),
        None => own_tokenizer,
    };
    let about_tokenizer = tokenizer.iter().flat_map(Tokenizer::remarks).cloned();
    let remarks = weights.surplus(&config)?.into_iter().chain(about_tokenizer);
    let remarks = remarks.map(|what| format!("{name}: {what}")).collect();
    let origin = Origin {
        kind,
        paths,
        revision: None,
        file_bytes: weights.file_bytes(),
        dummy_seed,
    };
    Ok(Model {
        name,
        config,
        weights,
        tokenizer,
        origin,
        remarks,
    })
}

/// The last part of a path, made absolute first so that `.` has a name too.
fn last_part(path: &Path) -> String {
    let absolute = path.canonicalize();
    let full = absolute.as_deref().unwrap_or(path);
    let part = |path: &Path| Some(path.file_name()?.to_string_lossy().into_owned());
    let name = part(full).unwrap_or_else(|| "model".to_owned());
    // A folder called after its precision says nothing without the one around it.
    match full.parent().and_then(part) {
        Some(around) if name.parse::<DType>().is_ok() => format!("{around}/{name}"),
        _ => name,
    }
}
