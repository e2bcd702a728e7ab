//! Files of the Hugging Face hub, through its cache. The environment means what it means to the hub's own tools:
//! `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_ENDPOINT`, and `HF_HUB_OFFLINE` to use what is cached and nothing else.
//!
//! Downloads show the client's progress bar on stderr where that is a terminal.

#[cfg(feature = "hub")]
mod client;

use std::path::PathBuf;

use crate::error::{Error, Result};

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
#[cfg(feature = "hub")]
pub(super) fn fetch_model(id: &str, revision: Option<&str>, weights: bool) -> Result<Snapshot> {
    client::fetch_model(
        &client::Settings::from_environment()?,
        id,
        revision,
        weights,
    )
}

/// One file of a data set repository, from the cache or the hub.
///
/// # Errors
/// [`Error::Data`] if it cannot be had, with what to do about it; [`Error::Usage`] for an impossible name or revision, and
/// in a build without the `hub` feature.
#[cfg(feature = "hub")]
pub fn dataset_file(repo: &str, revision: Option<&str>, file: &str) -> Result<PathBuf> {
    client::dataset_file(&client::Settings::from_environment()?, repo, revision, file)
}

#[cfg(not(feature = "hub"))]
pub(super) fn fetch_model(id: &str, _: Option<&str>, _: bool) -> Result<Snapshot> {
    Err(without_client(id))
}

/// One file of a data set repository; this build cannot fetch any.
///
/// # Errors
/// [`Error::Usage`], always.
#[cfg(not(feature = "hub"))]
pub fn dataset_file(repo: &str, _: Option<&str>, _: &str) -> Result<PathBuf> {
    Err(without_client(repo))
}

/// The names of all files of a data set repository; where there is no network, of those in the cache.
///
/// # Errors
/// As [`dataset_file`].
#[cfg(feature = "hub")]
pub fn dataset_listing(repo: &str, revision: Option<&str>) -> Result<Vec<String>> {
    client::dataset_listing(&client::Settings::from_environment()?, repo, revision)
}

/// The names of all files of a data set repository; this build cannot ask for them.
///
/// # Errors
/// [`Error::Usage`], always.
#[cfg(not(feature = "hub"))]
pub fn dataset_listing(repo: &str, _: Option<&str>) -> Result<Vec<String>> {
    Err(without_client(repo))
}

#[cfg(not(feature = "hub"))]
fn without_client(id: &str) -> Error {
    Error::Usage(format!(
        "'{id}' looks like a hub id, but this build has no hub client (feature 'hub'): give a folder or a file"
    ))
}

/// Checks what a path and an address will be made of.
#[cfg(feature = "hub")]
fn check_name(id: &str, revision: &str) -> Result<()> {
    if !is_id(id) {
        return Err(Error::Usage(format!(
            "'{id}' is not a hub id such as org/name"
        )));
    }
    let plain = |part: &str| !part.is_empty() && !part.starts_with('.');
    if !revision.split('/').all(plain) || revision.contains(['\\', ':', '?', '#', '%']) {
        return Err(Error::Usage(format!(
            "'{revision}' is not a revision of a repository"
        )));
    }
    Ok(())
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

    #[cfg(feature = "hub")]
    #[test]
    fn revisions_stay_inside_the_cache() {
        for revision in ["main", "v1.0", "refs/pr/1", "0123456789abcdef"] {
            check_name("a/b", revision).unwrap();
        }
        for revision in ["", "..", "a/../b", "/etc", "a\\b", "a?b", ".git"] {
            assert!(check_name("a/b", revision).is_err(), "{revision}");
        }
    }
}
