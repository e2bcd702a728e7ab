//! Files of the Hugging Face hub, through its cache. The environment means what it means to the hub's own tools:
//! `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_ENDPOINT`, and `HF_HUB_OFFLINE` to use what is cached and nothing else.
//!
//! Downloads show the client's progress bar on stderr where that is a terminal.

use std::path::PathBuf;

use crate::error::Result;

/// A repository's files of one commit, in the cache.
#[derive(Debug)]
pub(super) struct Snapshot {
    /// Where they are.
    pub(super) folder: PathBuf,
    /// The commit.
    pub(super) commit: String,
}

/// Whether `source` has the form of a hub id: `org/name` in the hub's alphabet.
pub(super) fn is_id(source: &str) -> bool {
    let part = |part: &str| {
        let alphabet = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty() && !part.starts_with('.') && part.chars().all(alphabet)
    };
    let local = [".gguf", ".json", ".safetensors"]
        .iter()
        .any(|ending| source.ends_with(ending));
    !local && matches!(source.split_once('/'), Some((org, name)) if part(org) && part(name))
}

/// Fetches a model repository's configuration and tokenizer, and its weights if asked for.
pub(super) fn fetch_model(id: &str, revision: Option<&str>, weights: bool) -> Result<Snapshot> {
    client::fetch_model(id, revision, weights)
}

/// One file of a data set repository, from the cache or the hub.
///
/// # Errors
/// [`Error::Data`](crate::error::Error::Data) if it cannot be had, with what to do about it;
/// [`Error::Usage`](crate::error::Error::Usage) in a build without the `hub` feature.
pub fn dataset_file(repo: &str, revision: Option<&str>, file: &str) -> Result<PathBuf> {
    client::dataset_file(repo, revision, file)
}

#[cfg(not(feature = "hub"))]
mod client {
    use std::path::PathBuf;

    use super::Snapshot;
    use crate::error::{Error, Result};

    pub(super) fn fetch_model(id: &str, _: Option<&str>, _: bool) -> Result<Snapshot> {
        Err(without_client(id))
    }

    pub(super) fn dataset_file(repo: &str, _: Option<&str>, _: &str) -> Result<PathBuf> {
        Err(without_client(repo))
    }

    fn without_client(id: &str) -> Error {
        Error::Usage(format!(
            "'{id}' looks like a hub id, but this build has no hub client (feature 'hub'): give a folder or a file"
        ))
    }
}

#[cfg(feature = "hub")]
mod client {
    use std::path::{Path, PathBuf};

    use hf_hub::api::sync::{Api, ApiBuilder};
    use hf_hub::{Cache, Repo, RepoType};

    use super::Snapshot;
    use crate::error::{Error, Result};
    use crate::model::directory::{CONFIG, GENERATION_CONFIG, INDEX, TOKENIZER, WEIGHTS};
    use crate::model::safetensors::read_index;

    pub(super) fn fetch_model(id: &str, revision: Option<&str>, weights: bool) -> Result<Snapshot> {
        let source = Source::new(id, RepoType::Model, revision)?;
        let config = source.get(CONFIG)?;
        // Neither is in every repository; what is missing shows when it is needed.
        for optional in [GENERATION_CONFIG, TOKENIZER] {
            source.get_optional(optional)?;
        }
        if weights {
            match source.get_optional(INDEX)? {
                None => drop(source.get(WEIGHTS)?),
                Some(index) => {
                    let mut shards: Vec<String> = read_index(&index)?
                        .into_iter()
                        .map(|(_, file)| file)
                        .collect();
                    shards.sort();
                    shards.dedup();
                    for shard in shards {
                        source.get(&shard)?;
                    }
                }
            }
        }
        let folder = config.parent().map(Path::to_owned).unwrap_or_default();
        // The cache calls a snapshot's folder by its commit.
        let commit = folder
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        Ok(Snapshot {
            commit: commit.unwrap_or_default(),
            folder,
        })
    }

    pub(super) fn dataset_file(repo: &str, revision: Option<&str>, file: &str) -> Result<PathBuf> {
        Source::new(repo, RepoType::Dataset, revision)?.get(file)
    }

    /// One repository at one revision.
    struct Source {
        repo: Repo,
        cache: Cache,
        /// Nothing when offline.
        api: Option<Api>,
    }

    impl Source {
        fn new(id: &str, kind: RepoType, revision: Option<&str>) -> Result<Self> {
            if !super::is_id(id) {
                return Err(Error::Usage(format!(
                    "'{id}' is not a hub id such as org/name"
                )));
            }
            let revision = revision.unwrap_or("main");
            let plain = |part: &str| !part.is_empty() && !part.starts_with('.');
            if !revision.split('/').all(plain) || revision.contains(['\\', '?', '#', '%']) {
                return Err(Error::Usage(format!(
                    "'{revision}' is not a revision of a repository"
                )));
            }
            let repo = Repo::with_revision(id.to_owned(), kind, revision.to_owned());
            let cache = Cache::new(cache_folder()?);
            let api = if offline() {
                None
            } else {
                Some(connect(&cache)?)
            };
            Ok(Self { repo, cache, api })
        }

        /// A file that must be there.
        fn get(&self, file: &str) -> Result<PathBuf> {
            if let Some(path) = self.cached(file) {
                return Ok(path);
            }
            let Some(api) = &self.api else {
                return Err(self.fault(
                    file,
                    "not in the cache, and HF_HUB_OFFLINE is set".to_owned(),
                ));
            };
            api.repo(self.repo.clone()).download(file).map_err(|e| {
                let cause = e.to_string();
                let advice = if cause.contains("401") || cause.contains("403") {
                    "accept the repository's licence on the hub and set HF_TOKEN"
                } else if cause.contains("404") {
                    "check the name, the revision and that the repository holds safetensors"
                } else {
                    "check the network, or copy the files to a folder and name that"
                };
                self.fault(file, format!("{cause}; {advice}"))
            })
        }

        /// A file that need not be there; only its absence from the repository is forgiven.
        fn get_optional(&self, file: &str) -> Result<Option<PathBuf>> {
            if self.api.is_none() {
                return Ok(self.cached(file));
            }
            match self.get(file) {
                Ok(path) => Ok(Some(path)),
                Err(Error::Data { what, .. }) if what.contains("404") => Ok(None),
                Err(e) => Err(e),
            }
        }

        fn cached(&self, file: &str) -> Option<PathBuf> {
            let repo = self.cache.repo(self.repo.clone());
            // The hub's own tools keep no reference for a commit that was named in full, only its snapshot.
            let direct = repo.pointer_path(self.repo.revision()).join(file);
            repo.get(file)
                .or_else(|| direct.is_file().then_some(direct))
        }

        fn fault(&self, file: &str, what: String) -> Error {
            let place = format!("{} at {}", self.repo.url(), self.repo.revision());
            Error::data(
                file,
                format!("cannot be had from the hub repository {place}: {what}"),
            )
        }
    }

    fn connect(cache: &Cache) -> Result<Api> {
        let mut builder = ApiBuilder::from_cache(cache.clone());
        if let Ok(endpoint) = std::env::var("HF_ENDPOINT") {
            builder = builder.with_endpoint(endpoint);
        }
        if let Ok(token) = std::env::var("HF_TOKEN") {
            builder = builder.with_token(Some(token.trim().to_owned()).filter(|t| !t.is_empty()));
        }
        let built = builder.with_retries(3).build();
        built.map_err(|e| Error::Usage(format!("cannot set up the hub client: {e}")))
    }

    fn offline() -> bool {
        let value = std::env::var("HF_HUB_OFFLINE").unwrap_or_default();
        ["1", "true", "yes", "on"].contains(&value.to_ascii_lowercase().as_str())
    }

    fn cache_folder() -> Result<PathBuf> {
        let set = |name| {
            std::env::var_os(name)
                .filter(|v| !v.is_empty())
                .map(PathBuf::from)
        };
        let home = || {
            let shared =
                set("XDG_CACHE_HOME").or_else(|| Some(std::env::home_dir()?.join(".cache")));
            Some(shared?.join("huggingface"))
        };
        set("HF_HUB_CACHE")
            .or_else(|| Some(set("HF_HOME").or_else(home)?.join("hub")))
            .ok_or_else(|| {
                Error::Usage("no home folder for the hub's cache: set HF_HOME".to_owned())
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hub_ids_have_two_parts_in_the_hubs_alphabet() {
        for id in ["Qwen/Qwen3-0.6B", "meta-llama/Llama-3.1-8B", "a/b_c"] {
            assert!(is_id(id), "{id}");
        }
        for id in [
            "Qwen3", "a/b/c", "../b", "a/..", "/a", "a/", "a b/c", "a/m.gguf", "a\\b/c",
        ] {
            assert!(!is_id(id), "{id}");
        }
    }
}
