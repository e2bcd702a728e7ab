//! Texts to score: files, folders, and fields of JSON lines.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::wikitext;
use crate::error::{Error, Result};

/// The field of a JSON line that holds the text, unless another is named.
pub const FIELD: &str = "text";

/// Between documents that are read as one stream, as the papers' code joins rows.
const SEPARATOR: &str = "\n\n";

/// How a file becomes a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TextFormat {
    /// Recognised by name and content: `.jsonl` is JSON lines, a raw WikiText file what the protocol's authors make of
    /// it, anything else plain.
    Auto,
    /// The rows of a data set, one a line, joined with blank lines as the papers' code joins them: a line of a single
    /// blank is the empty row, any other keeps its newline, and rows are joined with two newlines.
    Rows,
    /// The pages of a raw WikiText file, each a document, written as lm_eval's task `wikitext` writes them.
    Pages,
    /// The file as it is.
    Plain,
    /// A JSON object a line, one of whose fields is a document.
    Jsonl,
}

impl TextFormat {
    /// The name on the command line and in records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Rows => "rows",
            Self::Pages => "pages",
            Self::Plain => "plain",
            Self::Jsonl => "jsonl",
        }
    }
}

/// How files are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// The format of each.
    pub format: TextFormat,
    /// What [`TextFormat::Auto`] takes a raw WikiText file for.
    pub wikitext: TextFormat,
    /// The field of JSON lines; [`FIELD`] where `None`.
    pub field: Option<String>,
}

/// A text that has a beginning and an end of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// What is tokenised.
    pub content: String,
    /// Words of the original, counted as lm_eval counts them: the parts between runs of blanks, an empty one at either
    /// end included.
    pub words: u64,
    /// UTF-8 bytes of the original.
    pub bytes: u64,
}

impl Document {
    /// A document that is scored as it stands.
    pub fn new(content: impl Into<String>) -> Self {
        let content = content.into();
        Self {
            words: words(&content),
            bytes: content.len() as u64,
            content,
        }
    }

    /// A page of WikiText: scored as people write, measured as WikiText has it.
    fn of_page(page: &str) -> Self {
        Self {
            content: wikitext::detokenised(page),
            words: words(page),
            bytes: page.len() as u64,
        }
    }
}

fn words(text: &str) -> u64 {
    let mut inside = false;
    let mut blanks = 0;
    for c in text.chars() {
        blanks += u64::from(c.is_whitespace() && !inside);
        inside = c.is_whitespace();
    }
    blanks + 1
}

/// Texts that are ready to be tokenised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// What it is called in records.
    pub name: String,
    /// Its documents, at least one.
    pub documents: Vec<Document>,
    /// What the first file was read as, never [`TextFormat::Auto`].
    pub format: TextFormat,
}

impl Text {
    /// A text that is at hand.
    pub fn new(name: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            documents: vec![Document::new(content)],
            format: TextFormat::Plain,
        }
    }

    /// A text that is at hand, read like a file.
    ///
    /// # Errors
    /// If it is not of the format.
    pub fn of(name: &str, content: &str, reading: &Reading) -> Result<Self> {
        let (documents, format) = parse(Path::new(name), content.to_owned(), reading)?;
        Ok(Self {
            name: name.into(),
            documents,
            format,
        })
    }

    /// Reads a file of UTF-8, or every file of a folder and those in it, in the order of their names; hidden ones are
    /// left out.
    ///
    /// # Errors
    /// If something cannot be read, is not UTF-8, is no JSON line with the field, or holds nothing; all by file and line.
    pub fn read(path: &Path, reading: &Reading) -> Result<Self> {
        let name = fs::canonicalize(path).ok();
        let name = name.as_deref().unwrap_or(path).file_name();
        let name = name.map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let files = if path.is_dir() {
            files_in(path)?
        } else {
            vec![path.to_owned()]
        };
        let mut documents = Vec::new();
        let mut formats = Vec::new();
        for file in &files {
            let (more, format) = read_file(file, reading)?;
            documents.extend(more);
            formats.push(format);
        }
        let Some(&format) = formats.first() else {
            return Err(Error::data(path, "the folder holds no file"));
        };
        if reading.field.is_some() && !formats.contains(&TextFormat::Jsonl) {
            return Err(Error::Usage(format!(
                "--field is for JSON lines, but {} is {} text: leave it out, or give --text-format jsonl",
                path.display(),
                format.name()
            )));
        }
        if documents.iter().all(|d| d.content.trim().is_empty()) {
            return Err(Error::data(path, "the text is empty"));
        }
        Ok(Self {
            name,
            documents,
            format,
        })
    }

    /// The test split of WikiText-2 raw from the hub, read as `format`, which is [`TextFormat::Rows`] unless it says
    /// otherwise.
    ///
    /// # Errors
    /// If it can be neither found in the hub's cache nor fetched.
    pub fn wikitext2(reading: &Reading) -> Result<Self> {
        Self::wikitext2_split("test", reading)
    }

    /// The training split of WikiText-2 raw from the hub, for calibration.
    ///
    /// # Errors
    /// If it can be neither found in the hub's cache nor fetched.
    pub fn wikitext2_train(reading: &Reading) -> Result<Self> {
        Self::wikitext2_split("train", reading)
    }

    #[cfg(feature = "hub")]
    fn wikitext2_split(split: &str, reading: &Reading) -> Result<Self> {
        let path = crate::model::hub::dataset_file(
            "Salesforce/wikitext",
            None,
            &format!("wikitext-2-raw-v1/{split}-00000-of-00001.parquet"),
        )?;
        let rows = super::parquet::column(&path, "text")?;
        let (documents, format) = parse(&path, wikitext::raw_of_rows(&rows), reading)?;
        Ok(Self {
            name: format!("wikitext-2-raw-v1/{split}"),
            documents,
            format,
        })
    }

    #[cfg(not(feature = "hub"))]
    fn wikitext2_split(split: &str, _: &Reading) -> Result<Self> {
        Err(Error::Usage(format!(
            "the text wikitext2 needs a build with the feature `hub`: give a file with the {split} split"
        )))
    }

    /// All documents as one stream, blank lines between them.
    pub fn stream(&self) -> Cow<'_, str> {
        match self.documents.as_slice() {
            [single] => Cow::Borrowed(&single.content),
            several => {
                let contents: Vec<&str> = several.iter().map(|d| d.content.as_str()).collect();
                Cow::Owned(contents.join(SEPARATOR))
            }
        }
    }
}

/// Every file under a folder, in the order of their paths.
fn files_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let cannot = |e| Error::reading(folder, "cannot read the folder", e);
    let mut entries: Vec<PathBuf> = fs::read_dir(folder)
        .map_err(cannot)?
        .map(|entry| Ok(entry.map_err(cannot)?.path()))
        .collect::<Result<_>>()?;
    entries.sort();
    for path in entries {
        let hidden = path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if hidden {
            continue;
        }
        if path.is_dir() {
            files.extend(files_in(&path)?);
        } else {
            files.push(path);
        }
    }
    Ok(files)
}

fn read_file(path: &Path, reading: &Reading) -> Result<(Vec<Document>, TextFormat)> {
    let bytes = fs::read(path).map_err(|e| Error::reading(path, "cannot read", e))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::data(path, format!("not UTF-8 at byte {at}"))
    })?;
    parse(path, text, reading)
}

fn parse(path: &Path, text: String, reading: &Reading) -> Result<(Vec<Document>, TextFormat)> {
    let lines = path.extension().is_some_and(|e| e == "jsonl") || reading.field.is_some();
    let format = match reading.format {
        TextFormat::Auto if lines => TextFormat::Jsonl,
        TextFormat::Auto if wikitext::is_raw(&text) => reading.wikitext,
        TextFormat::Auto => TextFormat::Plain,
        chosen => chosen,
    };
    let documents = match format {
        TextFormat::Auto | TextFormat::Plain => vec![Document::new(text)],
        TextFormat::Rows => vec![Document::new(wikitext::joined_rows(&text))],
        TextFormat::Pages => {
            let pages = wikitext::pages(&text);
            pages.iter().map(|page| Document::of_page(page)).collect()
        }
        TextFormat::Jsonl => json_lines(path, &text, reading.field.as_deref().unwrap_or(FIELD))?,
    };
    Ok((documents, format))
}

fn json_lines(path: &Path, text: &str, field: &str) -> Result<Vec<Document>> {
    let lines = text.lines().enumerate();
    let lines = lines.filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(number, line)| {
            let fault =
                |what: String| Error::data(format!("{}:{}", path.display(), number + 1), what);
            let value: Value = serde_json::from_str(line)
                .map_err(|e| fault(format!("not JSON at column {}: {e}", e.column())))?;
            let Value::Object(fields) = &value else {
                return Err(fault("not a JSON object".into()));
            };
            match fields.get(field) {
                Some(Value::String(text)) => Ok(Document::new(text.as_str())),
                Some(other) => Err(fault(format!(
                    "the field '{field}' is no text but {other:.40}"
                ))),
                None => {
                    let names: Vec<&str> = fields.keys().map(String::as_str).collect();
                    Err(fault(format!(
                        "no field '{field}' among {}: give --field NAME",
                        names.join(", ")
                    )))
                }
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(format: TextFormat, field: Option<&str>) -> Reading {
        Reading {
            format,
            wikitext: TextFormat::Pages,
            field: field.map(str::to_owned),
        }
    }

    fn contents(text: &Text) -> Vec<&str> {
        text.documents.iter().map(|d| d.content.as_str()).collect()
    }

    #[test]
    fn a_file_without_text_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("empty.txt");
        let auto = reading(TextFormat::Auto, None);
        fs::write(&path, " \n\n").unwrap();
        assert_eq!(Text::read(&path, &auto).unwrap_err().exit_code(), 65);
        fs::write(&path, [b'a', 0xff]).unwrap();
        let error = Text::read(&path, &auto).unwrap_err().to_string();
        assert!(error.contains("byte 1"), "{error}");
        assert!(Text::read(&dir.path().join("none"), &auto).is_err());
        fs::remove_file(&path).unwrap();
        let error = Text::read(dir.path(), &auto).unwrap_err().to_string();
        assert!(error.contains("no file"), "{error}");
    }

    #[test]
    fn a_folder_is_its_files_in_order() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("b")).unwrap();
        for (name, content) in [
            ("c.txt", "three"),
            ("a.md", "one"),
            (".hidden", "no"),
            ("b/x.jsonl", "{\"text\":\"two\"}\n\n{\"text\":\"and\"}\n"),
        ] {
            fs::write(dir.path().join(name), content).unwrap();
        }
        let text = Text::read(dir.path(), &reading(TextFormat::Auto, None)).unwrap();
        assert_eq!(contents(&text), ["one", "two", "and", "three"]);
        assert_eq!(text.stream(), "one\n\ntwo\n\nand\n\nthree");
    }

    #[test]
    fn json_lines_name_file_and_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        fs::write(&path, "{\"body\":\"one\"}\n{\"body\":\"two\",\"n\":1}\n").unwrap();
        let body = reading(TextFormat::Auto, Some("body"));
        assert_eq!(contents(&Text::read(&path, &body).unwrap()), ["one", "two"]);
        for (content, field, what) in [
            (
                "{\"text\":\"a\"}\n{\"text\":",
                None,
                "rows.jsonl:2: not JSON",
            ),
            (
                "{\"text\":\"a\"}\n[1]",
                None,
                "rows.jsonl:2: not a JSON object",
            ),
            (
                "{\"a\":1,\"b\":2}",
                None,
                "rows.jsonl:1: no field 'text' among a, b",
            ),
            (
                "{\"a\":1,\"b\":2}",
                Some("a"),
                "rows.jsonl:1: the field 'a'",
            ),
        ] {
            fs::write(&path, content).unwrap();
            let error = Text::read(&path, &reading(TextFormat::Auto, field)).unwrap_err();
            assert!(error.to_string().contains(what), "{error}");
            assert_eq!(error.exit_code(), 65);
        }
        let plain = dir.path().join("a.txt");
        fs::write(&plain, "text").unwrap();
        let error = Text::read(&plain, &reading(TextFormat::Plain, Some("a"))).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
    }

    #[test]
    fn raw_wikitext_is_what_the_protocol_takes_it_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wiki.raw");
        fs::write(&path, " \n = One = \n \n a , b \n \n = Two = \n \n c \n").unwrap();
        let text = Text::read(&path, &reading(TextFormat::Auto, None)).unwrap();
        assert_eq!(text.format, TextFormat::Pages);
        assert_eq!(text.documents.len(), 2);
        assert_eq!(text.documents[0].content, " = One =\n\na, b\n");
        // Words and bytes are those of the page as it was.
        let raw = Document::new(" = One = \n \n a , b \n ");
        assert_eq!(
            (text.documents[0].words, text.documents[0].bytes),
            (raw.words, raw.bytes)
        );
        let plain = Text::read(&path, &reading(TextFormat::Plain, None)).unwrap();
        assert_eq!(plain.documents.len(), 1);
    }

    #[test]
    fn words_are_counted_as_python_splits() {
        // len(re.split(r"\s+", text))
        for (text, count) in [
            ("", 1),
            (" a  b ", 4),
            ("a b\n\nc", 3),
            ("one", 1),
            (" ", 2),
        ] {
            assert_eq!(words(text), count, "{text:?}");
        }
    }
}
