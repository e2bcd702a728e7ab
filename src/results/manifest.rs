//! What a run directory is of: `manifest.json`, written before the first record.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::environment::Environment;
use super::record::Key;
use crate::error::{Error, Result};

/// The name of the file.
pub const MANIFEST: &str = "manifest.json";

/// The versions of the file that this program reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Version {
    /// The first.
    #[serde(rename = "candlepower.manifest/1")]
    V1,
}

/// Where, of what and how the records of a run directory were measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Manifest {
    /// The version of this form.
    pub schema: Version,
    /// Every environment that records come from: more than one only if that was asked for. A record names its own by its
    /// place here; one that names none comes from the first.
    pub environments: Vec<Environment>,
    /// The command line of the latest run.
    pub command: Vec<String>,
    /// The plan of the latest run, with all defaults filled in.
    pub plan: Value,
    /// Every seed of the latest run, by what it chooses.
    pub seeds: BTreeMap<String, u64>,
    /// The models of the latest run.
    pub models: Vec<Model>,
    /// What the files that are made of records are made of; absent in folders of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latest: Option<Latest>,
}

/// What the latest run is made of, for whoever puts its study together anew.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Latest {
    /// Where and when it ran, even if its records join those of an earlier run.
    pub environment: Environment,
    /// The addresses of the points of its plan, in the order of the plan, whether or not they are on record.
    pub points: Vec<Key>,
}

/// A model, by content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Model {
    /// The name, as records have it.
    pub name: String,
    /// The commit of a hub repository.
    pub revision: Option<String>,
    /// A hash of weights and configuration, as records have it.
    pub digest: String,
    /// A hash of the tokenizer, as records have it.
    pub tokenizer_digest: String,
    /// The files of its weights.
    pub files: Vec<ModelFile>,
}

/// A file of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ModelFile {
    /// Its name, without its folder.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// A hash with its kind in front: `blake3` of all, `blake3-ends` of the size, the first and the last 16 MiB.
    pub digest: String,
}

impl Manifest {
    /// The manifest of a run directory; `None` if it has none.
    ///
    /// # Errors
    /// If there is one that cannot be read.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(MANIFEST);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::reading(path, "cannot read", error)),
        };
        serde_json::from_str(&text)
            .map(Some)
            .map_err(|error| Error::data(path, error))
    }

    /// Takes over the environments of an earlier manifest of the same directory. Gives the place of the present one, which
    /// `self` has alone.
    ///
    /// # Errors
    /// [`Error::Config`] if it is another than that of the first records, unless `mix` allows that.
    pub fn join(&mut self, earlier: Self, mix: bool) -> Result<usize> {
        let Some(now) = self.environments.pop() else {
            return Err(Error::Internal("a manifest without an environment".into()));
        };
        self.environments = earlier.environments;
        let known = self
            .environments
            .iter()
            .position(|then| differences(then, &now).is_empty());
        if let (false, Some(first)) = (mix, self.environments.first())
            && known != Some(0)
        {
            return Err(Error::Config(format!(
                "the records of this run were measured elsewhere: {}. Choose another --out, or give --mix to add to them, \
                 each marked with where it was measured",
                differences(first, &now).join("; ")
            )));
        }
        Ok(known.unwrap_or_else(|| {
            self.environments.push(now);
            self.environments.len() - 1
        }))
    }
}

/// What makes figures of one environment another's, in words. What is not known of one of them is no difference.
fn differences(then: &Environment, now: &Environment) -> Vec<String> {
    let power = |environment: &Environment| {
        let watts = environment.device.power_limit_watts;
        watts.map(|watts| format!("{watts} W"))
    };
    let clock = |environment: &Environment| {
        let mhz = environment.device.application_sm_clock_mhz;
        mhz.map(|mhz| format!("{mhz} MHz"))
    };
    // A GPU's figures do not depend on them.
    let threads = |environment: &Environment| {
        let on_cpu = environment.device.kind.as_deref() == Some("cpu");
        let threads = environment.threads.filter(|_| on_cpu);
        threads.map(|threads| threads.to_string())
    };
    let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let facts = [
        ("device", then.device.name.clone(), now.device.name.clone()),
        (
            "kind of device",
            then.device.kind.clone(),
            now.device.kind.clone(),
        ),
        (
            "driver",
            then.device.driver.clone(),
            now.device.driver.clone(),
        ),
        ("power limit", power(then), power(now)),
        ("SM clock of applications", clock(then), clock(now)),
        ("version", some(&then.tool_version), some(&now.tool_version)),
        ("commit", then.git_commit.clone(), now.git_commit.clone()),
        ("threads", threads(then), threads(now)),
    ];
    let differ = |(what, then, now): (&str, Option<String>, Option<String>)| {
        let (then, now) = (then?, now?);
        (then != now).then(|| format!("{what} {then}, now {now}"))
    };
    facts.into_iter().filter_map(differ).collect()
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            schema: Version::V1,
            environments: vec![fixture::environment()],
            command: fixture::command(),
            plan: Value::Null,
            seeds: BTreeMap::new(),
            models: Vec::new(),
            latest: None,
        }
    }

    #[test]
    fn the_same_environment_joins_and_another_is_turned_away() {
        assert_eq!(manifest().join(manifest(), false).unwrap(), 0);
        let mut other = manifest();
        other.environments[0].device.name = Some("another GPU".to_owned());
        let error = other.clone().join(manifest(), false).unwrap_err();
        assert_eq!(error.exit_code(), 64);
        for said in ["another GPU", "--mix", "--out"] {
            assert!(error.to_string().contains(said), "{error}");
        }
        let mut mixed = other.clone();
        assert_eq!(mixed.join(manifest(), true).unwrap(), 1);
        assert_eq!(mixed.environments.len(), 2);
        // The one that came second is known from then on, but still not the first.
        assert_eq!(other.clone().join(mixed.clone(), true).unwrap(), 1);
        assert!(other.join(mixed, false).is_err());
    }

    #[test]
    fn another_number_of_threads_is_turned_away_on_the_cpu() {
        let on = |kind: &str, threads| {
            let mut manifest = manifest();
            manifest.environments[0].device.kind = Some(kind.to_owned());
            manifest.environments[0].threads = Some(threads);
            manifest
        };
        let error = on("cpu", 1).join(on("cpu", 2), false).unwrap_err();
        assert!(error.to_string().contains("threads 2, now 1"), "{error}");
        assert_eq!(on("cpu", 1).join(on("cpu", 2), true).unwrap(), 1);
        assert_eq!(on("cuda", 1).join(on("cuda", 2), false).unwrap(), 0);
    }

    #[test]
    fn builds_of_other_changes_to_one_commit_are_told_apart() {
        let of = |commit: &str| {
            let mut manifest = manifest();
            manifest.environments[0].git_commit = Some(commit.to_owned());
            manifest
        };
        let (one, other) = (of("3f1c0a-dirty-01"), of("3f1c0a-dirty-02"));
        assert_eq!(one.clone().join(one.clone(), false).unwrap(), 0);
        let error = other.clone().join(one.clone(), false).unwrap_err();
        let said = "commit 3f1c0a-dirty-01, now 3f1c0a-dirty-02";
        assert!(error.to_string().contains(said), "{error}");
    }

    #[test]
    fn what_is_not_known_is_no_difference() {
        let mut now = fixture::environment();
        (now.git_commit, now.device.driver, now.threads) = (None, None, None);
        now.started = Some("later".to_owned());
        assert!(differences(&fixture::environment(), &now).is_empty());
    }

    #[test]
    fn a_manifest_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Manifest::read(dir.path()).unwrap(), None);
        let text = serde_json::to_string(&manifest()).unwrap();
        fs::write(dir.path().join(MANIFEST), &text).unwrap();
        assert_eq!(Manifest::read(dir.path()).unwrap(), Some(manifest()));
        fs::write(dir.path().join(MANIFEST), &text[..9]).unwrap();
        assert_eq!(Manifest::read(dir.path()).unwrap_err().exit_code(), 65);
    }
}
