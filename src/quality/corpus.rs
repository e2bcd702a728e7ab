//! Texts to score.

use std::path::Path;

use crate::error::{Error, Result};

/// How a file becomes a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TextFormat {
    /// Recognised by content: a raw WikiText file is rows, anything else plain.
    Auto,
    /// The rows of a data set, one a line, joined with blank lines as the papers' code joins them: a line of a single
    /// blank is the empty row, any other keeps its newline, and rows are joined with two newlines.
    Rows,
    /// The file as it is.
    Plain,
}

impl TextFormat {
    /// The name on the command line and in records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Rows => "rows",
            Self::Plain => "plain",
        }
    }
}

/// A text that is ready to be tokenised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// What it is called in records.
    pub name: String,
    /// Its content.
    pub content: String,
    /// What it was read as, never [`TextFormat::Auto`].
    pub format: TextFormat,
}

impl Text {
    /// A text that is at hand.
    pub fn new(name: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            content: content.into(),
            format: TextFormat::Plain,
        }
    }

    /// Reads a UTF-8 file.
    ///
    /// # Errors
    /// If it cannot be read, is not UTF-8, or holds nothing.
    pub fn read(path: &Path, format: TextFormat) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, "cannot read", e))?;
        let raw = String::from_utf8(bytes).map_err(|e| {
            let at = e.utf8_error().valid_up_to();
            Error::data(path, format!("not UTF-8 at byte {at}"))
        })?;
        if raw.trim().is_empty() {
            return Err(Error::data(path, "the text is empty"));
        }
        let format = match format {
            TextFormat::Auto if is_raw_wikitext(&raw) => TextFormat::Rows,
            TextFormat::Auto => TextFormat::Plain,
            chosen => chosen,
        };
        let name = path
            .file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let content = if format == TextFormat::Rows {
            join_rows(&raw)
        } else {
            raw
        };
        Ok(Self {
            name,
            content,
            format,
        })
    }

    /// The test split of WikiText-2 raw from the hub, its rows joined as [`TextFormat::Rows`] has them.
    ///
    /// # Errors
    /// If it can be neither found in the hub's cache nor fetched.
    pub fn wikitext2() -> Result<Self> {
        Self::wikitext2_split("test")
    }

    /// The training split of WikiText-2 raw from the hub, for calibration.
    ///
    /// # Errors
    /// If it can be neither found in the hub's cache nor fetched.
    pub fn wikitext2_train() -> Result<Self> {
        Self::wikitext2_split("train")
    }

    #[cfg(feature = "hub")]
    fn wikitext2_split(split: &str) -> Result<Self> {
        let path = crate::model::hub::dataset_file(
            "Salesforce/wikitext",
            None,
            &format!("wikitext-2-raw-v1/{split}-00000-of-00001.parquet"),
        )?;
        let rows = super::parquet::column(&path, "text")?;
        let raw = rows.join("\n\n");
        Ok(Self {
            name: format!("wikitext-2-raw-v1/{split}"),
            content: raw,
            format: TextFormat::Rows,
        })
    }

    #[cfg(not(feature = "hub"))]
    fn wikitext2_split(split: &str) -> Result<Self> {
        Err(Error::Usage(format!(
            "the text wikitext2 needs a build with the feature `hub`: give a file with the {split} split"
        )))
    }

    /// A hash of the content, with the algorithm in front.
    pub fn digest(&self) -> String {
        format!("blake3:{}", blake3::hash(self.content.as_bytes()).to_hex())
    }
}

/// Every line begins with a space, and some are headings like ` = Title = `.
fn is_raw_wikitext(text: &str) -> bool {
    let heading = |line: &str| line.starts_with(" = ") && line.trim_end().ends_with(" =");
    text.lines()
        .all(|line| line.starts_with(' ') || line.is_empty())
        && text.lines().any(heading)
}

fn join_rows(raw: &str) -> String {
    let mut rows: Vec<&str> = raw.split_inclusive('\n').collect();
    if rows.last().is_some_and(|row| row.is_empty()) {
        rows.pop();
    }
    rows.iter_mut()
        .filter(|row| row.trim().is_empty())
        .for_each(|row| *row = "");
    rows.join("\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAW: &str = " \n = Robert = \n \n He was , he said , an actor . \n";

    #[test]
    fn rows_are_joined_as_the_data_set_has_them() {
        assert!(is_raw_wikitext(RAW));
        assert!(!is_raw_wikitext("Plain text.\n = Heading = \n"));
        assert!(!is_raw_wikitext(" every line indented\n but no heading\n"));
        assert_eq!(
            join_rows(RAW),
            "\n\n = Robert = \n\n\n\n\n He was , he said , an actor . \n"
        );
    }

    #[test]
    fn a_file_without_text_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("empty.txt");
        std::fs::write(&path, " \n\n").unwrap();
        assert_eq!(
            Text::read(&path, TextFormat::Auto).unwrap_err().exit_code(),
            65
        );
        std::fs::write(&path, [b'a', 0xff]).unwrap();
        assert!(
            Text::read(&path, TextFormat::Auto)
                .unwrap_err()
                .to_string()
                .contains("byte 1")
        );
        assert!(Text::read(&dir.path().join("none"), TextFormat::Auto).is_err());
    }
}
