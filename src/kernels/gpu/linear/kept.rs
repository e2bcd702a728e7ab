//! Choices of kernels on the disk, so that a device is asked once and not by every run. A file belongs to one device and
//! one build of the kernels; another device or build has another file.

use std::collections::HashMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::plan::{LinearKernel, Problem};
use super::storage::Storage;
use crate::error::{Error, Result};
use crate::kernels::gpu::driver::Facts;

/// The form of the file.
const SCHEMA: &str = "candlepower.products/1";

/// Where the choices of one device and build are kept.
pub(super) struct Kept {
    path: PathBuf,
    device: String,
    kernels: String,
}

#[derive(Serialize, Deserialize)]
struct File {
    schema: String,
    device: String,
    /// Identifies the kernels of the build.
    kernels: String,
    choices: Vec<Choice>,
}

/// The fastest kernel for a storage, shape and number of tokens.
#[derive(Serialize, Deserialize)]
struct Choice {
    storage: String,
    n: usize,
    k: usize,
    tokens: usize,
    kernel: LinearKernel,
}

impl Kept {
    /// The file for this device and these kernels in `folder`.
    pub(super) fn new(folder: &Path, facts: &Facts, kernels: &str) -> Self {
        let (major, minor) = facts.compute_capability;
        let device = format!(
            "{}, {major}.{minor}, {} multiprocessors",
            facts.name, facts.multiprocessors
        );
        let key = blake3::hash(format!("{device}\n{kernels}").as_bytes()).to_hex();
        Self {
            path: folder.join(format!("products-{}.json", &key[..16])),
            device,
            kernels: kernels.to_owned(),
        }
    }

    /// What is kept. Nothing, where there is no file or it is not what it should be: it holds nothing that cannot be
    /// found again.
    pub(super) fn read(&self) -> HashMap<Problem, LinearKernel> {
        let file: Option<File> = fs::read(&self.path)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let ours = file.filter(|file| {
            file.schema == SCHEMA && file.device == self.device && file.kernels == self.kernels
        });
        let storages: HashMap<String, Storage> = Storage::all()
            .into_iter()
            .map(|storage| (storage.name(), storage))
            .collect();
        let choices = ours.map_or_else(Vec::new, |file| file.choices);
        choices
            .into_iter()
            .filter_map(|choice| {
                let problem = Problem {
                    storage: *storages.get(&choice.storage)?,
                    n: choice.n,
                    k: choice.k,
                    tokens: choice.tokens,
                };
                Some((problem, choice.kernel))
            })
            .collect()
    }

    /// Keeps `found` beside what other runs have found meanwhile.
    ///
    /// # Errors
    /// If the folder or the file cannot be written.
    pub(super) fn write(&self, found: &HashMap<Problem, LinearKernel>) -> Result<()> {
        let mut all = self.read();
        all.extend(found);
        let mut choices: Vec<Choice> = all
            .into_iter()
            .map(|(problem, kernel)| Choice {
                storage: problem.storage.name(),
                n: problem.n,
                k: problem.k,
                tokens: problem.tokens,
                kernel,
            })
            .collect();
        choices.sort_by(|a, b| {
            let key = |c: &Choice| (c.storage.clone(), c.n, c.k, c.tokens);
            key(a).cmp(&key(b))
        });
        let file = File {
            schema: SCHEMA.to_owned(),
            device: self.device.clone(),
            kernels: self.kernels.clone(),
            choices,
        };
        let text = serde_json::to_string_pretty(&file).map_err(|e| {
            Error::Internal(format!("the choices of kernels do not become JSON: {e}"))
        })?;
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let written = fs::create_dir_all(folder)
            .and_then(|()| tempfile::NamedTempFile::new_in(folder))
            .and_then(|mut part| {
                part.write_all(text.as_bytes())?;
                part.write_all(b"\n")?;
                part.persist(&self.path).map_err(|e| e.error)
            });
        written
            .map(drop)
            .map_err(|e| Error::writing(&self.path, "cannot write", e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheme::DType;

    fn facts(name: &str) -> Facts {
        Facts {
            name: name.into(),
            ..Facts::h100()
        }
    }

    fn found() -> HashMap<Problem, LinearKernel> {
        let all = Storage::all().into_iter().enumerate();
        all.flat_map(|(i, storage)| {
            let problem = |tokens| Problem {
                storage,
                n: 4096,
                k: 1024 + 64 * i,
                tokens,
            };
            [
                (
                    problem(1),
                    LinearKernel::Few {
                        tiles: 2,
                        tokens: 1,
                        splits: 1 + i,
                    },
                ),
                (problem(64), LinearKernel::Dequantized { tiles: i }),
                (problem(2048), LinearKernel::Library),
            ]
        })
        .collect()
    }

    #[test]
    fn what_is_kept_is_found_again_by_the_same_device_and_build_alone() {
        let folder = tempfile::tempdir().unwrap();
        // It need not be there yet.
        let folder = folder.path().join("new");
        let kept = Kept::new(&folder, &facts("H200"), "one");
        assert!(kept.read().is_empty());
        kept.write(&found()).unwrap();
        assert_eq!(kept.read(), found());
        let other = |device, build| Kept::new(&folder, &facts(device), build).read();
        assert!(other("H100", "one").is_empty());
        assert!(other("H200", "two").is_empty());
        assert_eq!(other("H200", "one"), found());
    }

    #[test]
    fn runs_add_to_what_others_have_found() {
        let folder = tempfile::tempdir().unwrap();
        let kept = Kept::new(folder.path(), &facts("H200"), "one");
        let (one, two): (HashMap<_, _>, HashMap<_, _>) =
            found().into_iter().partition(|(p, _)| p.tokens == 1);
        kept.write(&one).unwrap();
        kept.write(&two).unwrap();
        assert_eq!(kept.read(), found());
    }

    #[test]
    fn a_broken_file_holds_nothing_and_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let kept = Kept::new(folder.path(), &facts("H200"), "one");
        kept.write(&found()).unwrap();
        let whole = fs::read_to_string(&kept.path).unwrap();
        for broken in [
            &whole[..whole.len() / 2],
            "",
            "{}",
            &whole.replace(SCHEMA, "candlepower.products/9"),
        ] {
            fs::write(&kept.path, broken).unwrap();
            assert!(kept.read().is_empty(), "{broken}");
        }
        // A storage that no kernel has any more goes unnoticed.
        let name = Storage::Plain(DType::BF16).name();
        fs::write(&kept.path, whole.replace(&name, "plain_f8")).unwrap();
        assert_eq!(kept.read().len(), found().len() - 3);
        kept.write(&found()).unwrap();
        assert_eq!(kept.read(), found());
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let kept = Kept::new(&file.path().join("in-a-file"), &facts("H200"), "one");
        let error = kept.write(&found()).unwrap_err().to_string();
        assert!(error.contains("in-a-file"), "{error}");
    }
}
