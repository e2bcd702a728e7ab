//! What a run directory says of a run: its plan with every default filled in, its seeds, its models by content.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use serde_json::{Value, json};

use super::facts;
use super::plan::Plan;
use crate::error::{Error, Result};
use crate::model;
use crate::quality::tasks::{EXAMPLE_SEED, Limit};
use crate::results::environment::Environment;
use crate::results::manifest::{Latest, Manifest, Model, ModelFile, Version};

/// Bytes of each end that are hashed of a large file, and from where on one is large.
const END: u64 = 16 << 20;
const LARGE: u64 = 256 << 20;

/// The manifest of a run of `plan`.
///
/// # Errors
/// If a model cannot be read.
pub fn manifest(plan: &Plan, environment: Environment, command: Vec<String>) -> Result<Manifest> {
    let mut seeds = BTreeMap::from([("prompts".to_owned(), plan.seed)]);
    let mut models = Vec::new();
    for spec in &plan.models {
        let model = model::Model::open(spec)?;
        seeds.extend(
            model
                .origin
                .dummy_seed
                .map(|seed| (format!("weights of {}", model.name), seed)),
        );
        let identity = facts::model(&model)?;
        models.push(Model {
            name: identity.name,
            revision: identity.revision,
            digest: identity.digest,
            tokenizer_digest: identity.tokenizer_digest,
            files: model
                .origin
                .paths
                .iter()
                .map(|path| file(path))
                .collect::<Result<_>>()?,
        });
    }
    if let Some(calibration) = &plan.quantising.calibration {
        seeds.insert("calibration".to_owned(), calibration.seed);
    }
    if plan.tasks.is_some() {
        seeds.insert("examples of tasks".to_owned(), u64::from(EXAMPLE_SEED));
    }
    Ok(Manifest {
        schema: Version::V1,
        environments: vec![environment.clone()],
        command,
        plan: plan_in_full(plan),
        seeds,
        models,
        latest: Some(Latest {
            environment,
            // Known once the texts are read; the run adds them.
            points: Vec::new(),
        }),
    })
}

fn plan_in_full(plan: &Plan) -> Value {
    let cell = |cell: &crate::results::record::Cell| {
        json!({
            "batch": cell.batch,
            "prompt_tokens": cell.prompt,
            "generated_tokens": cell.generate,
            "depth": cell.depth,
        })
    };
    let quality = plan.quality.as_ref().map(|quality| {
        let text = quality.text.as_ref().map(|path| path.display().to_string());
        json!({
            "text": text,
            "text_format": quality.format.name(),
            "protocol": quality.protocol.name(),
            "context": quality.protocol.context,
            "stride": quality.protocol.stride(),
            "segments": quality.protocol.segments,
            "base_top_k": quality.base.as_ref().map(|base| base.top_k),
            "under_load": quality.under_load,
        })
    });
    let tasks = plan.tasks.as_ref().map(|tasks| {
        let (names, groups) = (tasks.suite.tasks.iter(), tasks.suite.groups.iter());
        json!({
            "tasks": names.map(|task| &task.name).collect::<Vec<_>>(),
            "groups": groups.map(|group| &group.name).collect::<Vec<_>>(),
            "num_fewshot": tasks.shots,
            "limit": tasks.limit.map(|limit| match limit {
                Limit::Count(count) => json!(count),
                Limit::Share(share) => json!(share),
            }),
            "add_bos": tasks.add_bos,
            "max_length": tasks.max_length,
            "under_load": tasks.under_load,
        })
    });
    let calibration = plan.quantising.calibration.as_ref().map(|calibration| {
        json!({
            "text": calibration.text.display().to_string(),
            "samples": calibration.samples,
            "length": calibration.length,
        })
    });
    let rule = &plan.rule;
    json!({
        "variants": plan.variants.iter().map(|v| &v.name).collect::<Vec<_>>(),
        "kv_cache": plan.kv.iter().map(|kv| kv.name()).collect::<Vec<_>>(),
        "cells": plan.cells.iter().map(cell).collect::<Vec<_>>(),
        "engine": plan.engine_name(),
        "activation_dtype": plan.act.map(|dtype| dtype.name()),
        "chunk": plan.chunk,
        "quality": quality,
        "tasks": tasks,
        "calibration": calibration,
        "min_trials": rule.min_trials,
        "min_time_s": rule.min_time.0,
        "max_trials": rule.max_trials,
        "max_time_s": rule.max_time.map(|time| time.0),
        "warmup_trials": plan.warm_up.min_trials,
        "warmup_time_s": plan.warm_up.min_time.0,
        "turns": plan.turns,
        "precision": rule.until.precision,
        "until_noise_is_stable": rule.until.stable,
        "energy_window_s": plan.energy.window.0,
        "energy_pre_roll_s": plan.energy.pre_roll.0,
        "energy_idle_s": plan.energy.idle.0,
    })
}

/// A file by content: all of it, unless it is so large that reading it would hold up the run.
fn file(path: &Path) -> Result<ModelFile> {
    let unreadable = |e| Error::reading(path, "cannot read", e);
    let mut file = File::open(path).map_err(unreadable)?;
    let bytes = file.metadata().map_err(unreadable)?.len();
    let mut hasher = blake3::Hasher::new();
    let kind = if bytes <= LARGE {
        hasher.update_reader(&file).map_err(unreadable)?;
        "blake3"
    } else {
        hasher.update(&bytes.to_le_bytes());
        hasher
            .update_reader((&file).take(END))
            .map_err(unreadable)?;
        file.seek(SeekFrom::Start(bytes - END))
            .map_err(unreadable)?;
        hasher.update_reader(&file).map_err(unreadable)?;
        "blake3-ends"
    };
    Ok(ModelFile {
        name: path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        bytes,
        digest: format!("{kind}:{}", hasher.finalize().to_hex()),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_small_file_is_hashed_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        fs::write(&path, b"weights").unwrap();
        let found = file(&path).unwrap();
        assert_eq!((found.name.as_str(), found.bytes), ("w.safetensors", 7));
        let expected = format!("blake3:{}", blake3::hash(b"weights").to_hex());
        assert_eq!(found.digest, expected);
    }

    #[test]
    fn a_large_file_is_told_apart_by_its_ends_and_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.gguf");
        let digest = |bytes: u64, at: u64| {
            use std::io::Write;
            // A file of holes takes no room.
            let mut made = File::create(&path).unwrap();
            made.set_len(bytes).unwrap();
            made.seek(SeekFrom::Start(at)).unwrap();
            made.write_all(b"x").unwrap();
            file(&path).unwrap().digest
        };
        let first = digest(LARGE + 1, 0);
        assert!(first.starts_with("blake3-ends:"));
        assert_eq!(first, digest(LARGE + 1, 0));
        assert_ne!(first, digest(LARGE + 2, 0));
        assert_ne!(first, digest(LARGE + 1, LARGE));
    }
}
