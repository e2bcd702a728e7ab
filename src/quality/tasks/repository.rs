//! Which files of a data set's repository on the hub make up a split: by the patterns that the front matter of its README
//! names, else by the folders and file names that the datasets library knows.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::task::Source;
use super::yaml;
use crate::error::{Error, Result};
use crate::model::hub;

/// The files of a split, in the hub's cache.
///
/// # Errors
/// If the repository cannot be had or none of its files is known to belong to the split.
pub(super) fn files(source: &Source, split: &str) -> Result<Vec<PathBuf>> {
    let (repo, revision) = (source.path.as_str(), source.revision.as_deref());
    let listing = hub::dataset_listing(repo, revision)?;
    let readme = match listing.iter().any(|name| name == "README.md") {
        true => {
            let path = hub::dataset_file(repo, revision, "README.md")?;
            std::fs::read_to_string(&path).map_err(|e| Error::reading(&path, "cannot read", e))?
        }
        false => String::new(),
    };
    let chosen = choose(
        &listing,
        front_matter(&readme)?.as_ref(),
        source.name.as_deref(),
        split,
    );
    if chosen.is_empty() {
        return Err(Error::Usage(format!(
            "{repo} has no parquet or JSON files of the split '{split}'{}: give local files by dataset_path: json and \
             dataset_kwargs: data_files",
            source
                .name
                .as_ref()
                .map_or_else(String::new, |name| format!(" of '{name}'"))
        )));
    }
    let paths = chosen
        .iter()
        .map(|file| hub::dataset_file(repo, revision, file));
    paths.collect()
}

/// The YAML between two lines of dashes at the beginning of a README.
fn front_matter(readme: &str) -> Result<Option<Value>> {
    let Some(rest) = readme.strip_prefix("---\n") else {
        return Ok(None);
    };
    let Some((text, _)) = rest.split_once("\n---") else {
        return Ok(None);
    };
    yaml::parse(Path::new("README.md"), text).map(Some)
}

fn choose(
    listing: &[String],
    readme: Option<&Value>,
    config: Option<&str>,
    split: &str,
) -> Vec<String> {
    let named = readme
        .map(|readme| patterns(readme, config, split))
        .unwrap_or_default();
    let of = |fits: &dyn Fn(&str) -> bool| -> Vec<String> {
        let mut files: Vec<String> = listing
            .iter()
            .filter(|file| is_data(file) && fits(file))
            .cloned()
            .collect();
        files.sort();
        files
    };
    if !named.is_empty() {
        return of(&|file| named.iter().any(|pattern| matches(pattern, file)));
    }
    // Folders first: a file of another configuration may carry the split's name too.
    let folders: Vec<String> = match config {
        Some(config) if config != "default" => vec![format!("{config}/")],
        _ => vec!["data/".to_owned(), String::new()],
    };
    for folder in folders {
        let found = of(&|file| {
            let name = file.strip_prefix(folder.as_str());
            name.is_some_and(|name| !name.contains('/') && words(name).any(|word| word == split))
        });
        if !found.is_empty() {
            return alike(found);
        }
    }
    Vec::new()
}

/// Shards of one file, or else the file with the shortest name: `x_test_de.jsonl` is another than `x_test.jsonl`.
fn alike(files: Vec<String>) -> Vec<String> {
    if files.iter().all(|file| file.contains("-of-")) {
        return files;
    }
    let shortest = files.into_iter().min_by_key(String::len);
    shortest.into_iter().collect()
}

fn is_data(file: &str) -> bool {
    [".parquet", ".jsonl", ".json"]
        .iter()
        .any(|ending| file.ends_with(ending))
}

fn words(name: &str) -> impl Iterator<Item = &str> {
    name.split(|c: char| !c.is_ascii_alphanumeric())
}

/// The patterns of a split under `configs`.
fn patterns(readme: &Value, config: Option<&str>, split: &str) -> Vec<String> {
    let configs = readme.get("configs").and_then(Value::as_array);
    let configs = configs.map_or(&[][..], Vec::as_slice);
    let name = |entry: &Value| {
        entry
            .get("config_name")
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    let chosen = match config {
        Some(wanted) => configs
            .iter()
            .find(|entry| name(entry).as_deref() == Some(wanted)),
        None => {
            let default = |entry: &&Value| {
                entry.get("default") == Some(&Value::Bool(true))
                    || name(entry).as_deref() == Some("default")
            };
            configs
                .iter()
                .find(default)
                .or(configs.first().filter(|_| configs.len() == 1))
        }
    };
    let texts = |value: &Value| -> Vec<String> {
        match value {
            Value::String(one) => vec![one.clone()],
            Value::Array(many) => many
                .iter()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect(),
            _ => Vec::new(),
        }
    };
    match chosen.and_then(|entry| entry.get("data_files")) {
        Some(Value::Array(entries)) if entries.iter().all(Value::is_object) => {
            let of_split =
                |entry: &&Value| entry.get("split").and_then(Value::as_str) == Some(split);
            let paths = entries
                .iter()
                .filter(of_split)
                .filter_map(|entry| entry.get("path"));
            paths.flat_map(texts).collect()
        }
        Some(Value::Object(splits)) => splits.get(split).map(texts).unwrap_or_default(),
        // Without splits, everything is for training.
        Some(files) if split == "train" => texts(files),
        _ => Vec::new(),
    }
}

/// Whether a path fits a pattern, where `*` stands for anything within a folder and `**` for anything.
fn matches(pattern: &str, path: &str) -> bool {
    let Some(star) = pattern.find('*') else {
        return pattern == path;
    };
    let (before, after) = pattern.split_at(star);
    let Some(rest) = path.strip_prefix(before) else {
        return false;
    };
    let deep = after.starts_with("**");
    let after = after.trim_start_matches('*');
    let after = if deep {
        after.strip_prefix('/').unwrap_or(after)
    } else {
        after
    };
    let ends = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
    ends.take_while(|&end| deep || !rest[..end].contains('/'))
        .any(|end| matches(after, &rest[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn a_readme_decides_where_it_names_files() {
        let readme = "---\nlicense: mit\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n    path: main/train-*\n  - split: test\n    path: main/test-*\n- config_name: flat\n  default: true\n  data_files:\n  - split: test\n    path: [\"x.jsonl\"]\n---\n# Text\n";
        let readme = front_matter(readme).unwrap();
        let files = listing(&[
            "main/train-00000-of-00001.parquet",
            "main/test-00000-of-00001.parquet",
            "x.jsonl",
            "README.md",
        ]);
        let chosen = |config, split| choose(&files, readme.as_ref(), config, split);
        assert_eq!(
            chosen(Some("main"), "test"),
            ["main/test-00000-of-00001.parquet"]
        );
        assert_eq!(chosen(None, "test"), ["x.jsonl"]);
        assert_eq!(chosen(Some("main"), "dev"), Vec::<String>::new());
    }

    #[test]
    fn names_decide_where_it_does_not() {
        let files = listing(&[
            "anatomy/dev-00000-of-00001.parquet",
            "anatomy/test-00000-of-00001.parquet",
            "all/test-00000-of-00001.parquet",
            "data/lambada_test.jsonl",
            "data/lambada_test_de.jsonl",
            "latest.json",
        ]);
        assert_eq!(
            choose(&files, None, Some("anatomy"), "dev"),
            ["anatomy/dev-00000-of-00001.parquet"]
        );
        assert_eq!(
            choose(&files, None, Some("default"), "test"),
            ["data/lambada_test.jsonl"]
        );
        assert_eq!(
            choose(&files, None, None, "validation"),
            Vec::<String>::new()
        );
    }

    #[test]
    fn stars_stay_in_their_folder_unless_doubled() {
        assert!(matches("a/*-x.json", "a/b-x.json"));
        assert!(!matches("a/*.json", "a/b/c.json"));
        assert!(matches("**/c.json", "a/b/c.json") && matches("**/c.json", "c.json"));
        assert!(!matches("a", "ab"));
    }
}
