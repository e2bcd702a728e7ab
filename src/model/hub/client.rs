//! Looking up and downloading, with what the environment says taken in once.

use std::path::{Path, PathBuf};

use hf_hub::api::sync::{Api, ApiBuilder};
use hf_hub::{Cache, Repo, RepoType};

use super::{Snapshot, check_name};
use crate::error::{Error, Result};
use crate::model::directory::{CONFIG, GENERATION_CONFIG, INDEX, TOKENIZER, WEIGHTS};
use crate::model::quantised::SETTINGS;
use crate::model::safetensors::read_index;
use crate::model::tokenizer_config::FILE as TOKENIZER_CONFIG;

/// What the environment decides.
#[derive(Debug)]
pub(super) struct Settings {
    cache: PathBuf,
    /// Use the cache and nothing else.
    offline: bool,
    /// Another hub than the usual one.
    endpoint: Option<String>,
    /// Another token than the one that the cache keeps.
    token: Option<String>,
}

impl Settings {
    /// Reads the variables.
    pub(super) fn from_environment() -> Result<Self> {
        let set = |name| {
            std::env::var(name)
                .ok()
                .map(|v| v.trim().to_owned())
                .filter(|v| !v.is_empty())
        };
        let folder = |name| {
            std::env::var_os(name)
                .filter(|v| !v.is_empty())
                .map(PathBuf::from)
        };
        let home = || {
            let shared =
                folder("XDG_CACHE_HOME").or_else(|| Some(std::env::home_dir()?.join(".cache")));
            Some(shared?.join("huggingface"))
        };
        let cache =
            folder("HF_HUB_CACHE").or_else(|| Some(folder("HF_HOME").or_else(home)?.join("hub")));
        let offline = set("HF_HUB_OFFLINE")
            .unwrap_or_default()
            .to_ascii_lowercase();
        Ok(Self {
            cache: cache.ok_or_else(|| {
                Error::Usage("no home folder for the hub's cache: set HF_HOME".to_owned())
            })?,
            offline: ["1", "true", "yes", "on"].contains(&offline.as_str()),
            endpoint: set("HF_ENDPOINT"),
            token: set("HF_TOKEN"),
        })
    }
}

/// Fetches configuration and tokenizer, and the weights if asked for.
pub(super) fn fetch_model(
    settings: &Settings,
    id: &str,
    revision: Option<&str>,
    weights: bool,
) -> Result<Snapshot> {
    let source = Source::new(settings, id, RepoType::Model, revision)?;
    let config = source.get(CONFIG)?;
    // None of these is in every repository; what is missing shows when it is needed.
    for optional in [GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG] {
        source.get_optional(optional)?;
    }
    if weights {
        fetch_weights(&source)?;
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

fn fetch_weights(source: &Source) -> Result<()> {
    // Older quantised checkpoints say what they are in a file of their own.
    for (settings, _) in SETTINGS {
        source.get_optional(settings)?;
    }
    let Some(index) = source.get_optional(INDEX)? else {
        return source.get(WEIGHTS).map(drop);
    };
    // The index has been checked to name plain files only.
    let mut shards: Vec<String> = read_index(&index)?
        .into_iter()
        .map(|(_, file)| file)
        .collect();
    shards.sort();
    shards.dedup();
    shards
        .iter()
        .try_for_each(|shard| source.get(shard).map(drop))
}

/// One file of a data set.
pub(super) fn dataset_file(
    settings: &Settings,
    repo: &str,
    revision: Option<&str>,
    file: &str,
) -> Result<PathBuf> {
    Source::new(settings, repo, RepoType::Dataset, revision)?.get(file)
}

/// The files of a data set.
pub(super) fn dataset_listing(
    settings: &Settings,
    repo: &str,
    revision: Option<&str>,
) -> Result<Vec<String>> {
    Source::new(settings, repo, RepoType::Dataset, revision)?.list()
}

/// One repository at one revision.
struct Source {
    repo: Repo,
    cache: Cache,
    /// Nothing when offline.
    api: Option<Api>,
    /// Whether the cache had this revision before anything was fetched.
    known: bool,
}

/// Why a file could not be had.
enum Failure {
    /// The repository has no such file.
    Absent(Error),
    /// Anything else.
    Other(Error),
}

impl Source {
    fn new(settings: &Settings, id: &str, kind: RepoType, revision: Option<&str>) -> Result<Self> {
        let revision = revision.unwrap_or("main");
        check_name(id, revision)?;
        let cache = Cache::new(settings.cache.clone());
        let api = match settings.offline {
            true => None,
            false => Some(connect(&cache, settings)?),
        };
        let mut source = Self {
            repo: Repo::with_revision(id.to_owned(), kind, revision.to_owned()),
            cache,
            api,
            known: false,
        };
        source.known = source.cached(CONFIG).is_some();
        Ok(source)
    }

    /// A file that must be there.
    fn get(&self, file: &str) -> Result<PathBuf> {
        self.try_get(file)
            .map_err(|(Failure::Absent(error) | Failure::Other(error))| error)
    }

    /// A file that need not be there. Where the cache has the revision already, a network that fails is taken for the
    /// file's absence, so that a model that was fetched once works without one.
    fn get_optional(&self, file: &str) -> Result<Option<PathBuf>> {
        match self.try_get(file) {
            Ok(path) => Ok(Some(path)),
            Err(Failure::Absent(_)) => Ok(None),
            Err(Failure::Other(_)) if self.known => Ok(None),
            Err(Failure::Other(error)) => Err(error),
        }
    }

    fn try_get(&self, file: &str) -> Result<PathBuf, Failure> {
        if let Some(path) = self.cached(file) {
            return Ok(path);
        }
        let Some(api) = &self.api else {
            let what = "not in the cache, and HF_HUB_OFFLINE is set";
            return Err(Failure::Absent(self.fault(file, what)));
        };
        api.repo(self.repo.clone()).download(file).map_err(|e| {
            // The client's own error type is behind a crate that is not ours to name; its text is stable.
            let cause = e.to_string();
            let refused = |codes: &[&str]| codes.iter().any(|code| cause.contains(&format!("status: {code}")));
            let with_advice = |advice: &str| self.fault(file, format!("{cause}; {advice}"));
            if refused(&["404"]) {
                Failure::Absent(with_advice(
                    "check the name, the revision and that the repository holds safetensors",
                ))
            } else if refused(&["401", "403"]) {
                Failure::Other(with_advice(
                    "check the name; if it is right, accept the repository's licence on the hub and set HF_TOKEN",
                ))
            } else {
                Failure::Other(with_advice(
                    "check the network, or copy the files to a folder and name that",
                ))
            }
        })
    }

    /// The names of all files; of those in the cache, where the hub cannot be asked.
    fn list(&self) -> Result<Vec<String>> {
        let asked = self
            .api
            .as_ref()
            .map(|api| api.repo(self.repo.clone()).info());
        let cause = match asked {
            Some(Ok(info)) => return Ok(info.siblings.into_iter().map(|f| f.rfilename).collect()),
            Some(Err(e)) => e.to_string(),
            None => "HF_HUB_OFFLINE is set".to_owned(),
        };
        let mut names = Vec::new();
        if let Some(folder) = self.snapshot() {
            collect_files(&folder, "", &mut names);
        }
        if names.is_empty() {
            return Err(self.fault(
                "the list of files",
                format!("{cause}, and nothing of it is in the cache; copy the data and name the files in a YAML task"),
            ));
        }
        names.sort();
        Ok(names)
    }

    /// The folder of this revision in the cache.
    fn snapshot(&self) -> Option<PathBuf> {
        let repo = self.cache.repo(self.repo.clone());
        let folder = repo.pointer_path(self.repo.revision());
        if folder.is_dir() {
            return Some(folder);
        }
        let reference = self.cache.path().join(self.repo.folder_name());
        let reference = reference.join("refs").join(self.repo.revision());
        let commit = std::fs::read_to_string(reference).ok()?;
        Some(repo.pointer_path(commit.trim())).filter(|folder| folder.is_dir())
    }

    fn cached(&self, file: &str) -> Option<PathBuf> {
        let repo = self.cache.repo(self.repo.clone());
        // The hub's own tools keep no reference for a commit that was named in full, only its snapshot.
        let direct = repo.pointer_path(self.repo.revision()).join(file);
        repo.get(file)
            .or_else(|| direct.is_file().then_some(direct))
    }

    fn fault(&self, file: &str, what: impl std::fmt::Display) -> Error {
        let place = format!("{} at {}", self.repo.url(), self.repo.revision());
        Error::data(
            file,
            format!("cannot be had from the hub repository {place}: {what}"),
        )
    }
}

/// The files under a folder, by their names relative to the first one.
fn collect_files(folder: &Path, prefix: &str, names: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let path = entry.path();
        // Files are links into the cache's blobs; folders are not.
        if path.is_dir() {
            collect_files(&path, &format!("{name}/"), names);
        } else {
            names.push(name);
        }
    }
}

fn connect(cache: &Cache, settings: &Settings) -> Result<Api> {
    let mut builder = ApiBuilder::from_cache(cache.clone()).with_retries(3);
    if let Some(endpoint) = &settings.endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    if let Some(token) = &settings.token {
        builder = builder.with_token(Some(token.clone()));
    }
    builder
        .build()
        .map_err(|e| Error::Usage(format!("cannot set up the hub client: {e}")))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn settings(cache: &Path, endpoint: Option<String>) -> Settings {
        Settings {
            cache: cache.to_owned(),
            offline: endpoint.is_none(),
            endpoint,
            token: None,
        }
    }

    /// A cache that holds these files of `org/name`, as the hub's own tools leave it.
    fn fill(cache: &Path, files: &[&str]) {
        let repo = cache.join("models--org--name");
        fs::create_dir_all(repo.join("refs")).unwrap();
        fs::write(repo.join("refs/main"), COMMIT).unwrap();
        let snapshot = repo.join("snapshots").join(COMMIT);
        fs::create_dir_all(&snapshot).unwrap();
        for file in files {
            fs::write(snapshot.join(file), file).unwrap();
        }
    }

    #[test]
    fn offline_the_cache_is_all_there_is() {
        let cache = tempfile::tempdir().unwrap();
        let settings = settings(cache.path(), None);
        let missing = fetch_model(&settings, "org/name", None, true).unwrap_err();
        assert!(missing.to_string().contains("HF_HUB_OFFLINE"), "{missing}");
        fill(cache.path(), &[CONFIG]);
        let shape = fetch_model(&settings, "org/name", None, false).unwrap();
        assert_eq!(shape.commit, COMMIT);
        let missing = fetch_model(&settings, "org/name", None, true).unwrap_err();
        assert!(missing.to_string().starts_with(WEIGHTS), "{missing}");
        fill(cache.path(), &[WEIGHTS]);
        for revision in [None, Some("main"), Some(COMMIT)] {
            let snapshot = fetch_model(&settings, "org/name", revision, true).unwrap();
            assert!(snapshot.folder.join(WEIGHTS).is_file());
        }
        assert!(fetch_model(&settings, "org/name", Some("other"), true).is_err());
    }

    #[test]
    fn the_files_of_a_data_set_are_listed_from_the_cache() {
        let cache = tempfile::tempdir().unwrap();
        let settings = settings(cache.path(), None);
        let missing = dataset_listing(&settings, "org/rows", None).unwrap_err();
        assert!(missing.to_string().contains("HF_HUB_OFFLINE"), "{missing}");
        let repo = cache.path().join("datasets--org--rows");
        let snapshot = repo.join("snapshots").join(COMMIT);
        fs::create_dir_all(snapshot.join("main")).unwrap();
        fs::create_dir_all(repo.join("refs")).unwrap();
        fs::write(repo.join("refs/main"), COMMIT).unwrap();
        fs::write(snapshot.join("README.md"), "text").unwrap();
        fs::write(snapshot.join("main/test.jsonl"), "{}").unwrap();
        for revision in [None, Some(COMMIT)] {
            let names = dataset_listing(&settings, "org/rows", revision).unwrap();
            assert_eq!(names, ["README.md", "main/test.jsonl"]);
        }
        let file = dataset_file(&settings, "org/rows", None, "main/test.jsonl").unwrap();
        assert_eq!(fs::read_to_string(file).unwrap(), "{}");
    }

    /// A hub of one repository on a port of this machine.
    fn serve(files: &'static [(&'static str, &'static str)]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                answer(&mut stream.unwrap(), files);
            }
        });
        address
    }

    fn answer(stream: &mut TcpStream, files: &[(&str, &str)]) {
        let lines = BufReader::new(stream.try_clone().unwrap())
            .lines()
            .map(Result::unwrap);
        let request: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
        let file = files
            .iter()
            .find(|(name, _)| request[0].contains(&format!("/resolve/main/{name} ")));
        let reply = match file {
            None => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                .to_owned(),
            Some((name, text)) => {
                let probe = request
                    .iter()
                    .any(|line| line.to_lowercase().contains("bytes=0-0"));
                let body = if probe { &text[..1] } else { text };
                format!(
                    "HTTP/1.1 206 Partial Content\r\nx-repo-commit: {COMMIT}\r\netag: \"{name}-tag\"\r\n\
                     Content-Range: bytes 0-{}/{}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len() - 1,
                    text.len(),
                    body.len()
                )
            }
        };
        stream.write_all(reply.as_bytes()).unwrap();
    }

    fn behind_a_proxy() -> bool {
        std::env::vars_os()
            .any(|(name, _)| name.to_string_lossy().to_lowercase().ends_with("_proxy"))
    }

    #[test]
    fn a_repository_is_fetched_once() {
        // A proxy cannot reach this machine's ports.
        if behind_a_proxy() {
            return;
        }
        let cache = tempfile::tempdir().unwrap();
        let hub = serve(&[
            (CONFIG, "{}"),
            (
                INDEX,
                r#"{"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}"#,
            ),
            ("one.safetensors", "weights"),
            (TOKENIZER_CONFIG, "{} "),
            (SETTINGS[0].0, "{} "),
        ]);
        let online = settings(cache.path(), Some(hub));
        let snapshot = fetch_model(&online, "org/name", None, true).unwrap();
        assert_eq!(snapshot.commit, COMMIT);
        let shard = fs::read_to_string(snapshot.folder.join("one.safetensors")).unwrap();
        assert_eq!(shard, "weights");
        for file in [TOKENIZER_CONFIG, SETTINGS[0].0] {
            assert!(snapshot.folder.join(file).is_file(), "{file}");
        }
        let absent = Source::new(&online, "org/name", RepoType::Model, None)
            .unwrap()
            .get("two");
        assert!(absent.unwrap_err().to_string().contains("404"));

        // Nothing listens on this port: what was fetched is found without a network, and the rest is an error.
        let dead = settings(cache.path(), Some("http://127.0.0.1:1".to_owned()));
        assert_eq!(
            fetch_model(&dead, "org/name", None, true).unwrap().folder,
            snapshot.folder
        );
        let unknown = fetch_model(&dead, "org/other", None, true).unwrap_err();
        assert!(
            unknown.to_string().contains("check the network"),
            "{unknown}"
        );
    }
}
