//! One column of texts out of a parquet file, as the hub keeps data sets.

use std::fs::File;
use std::path::Path;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::RowAccessor;

use crate::error::{Error, Result};

/// Every value of the column `name`, in order; a null is the empty text.
///
/// # Errors
/// If the file is not parquet, or has no such column of texts.
pub(super) fn column(path: &Path, name: &str) -> Result<Vec<String>> {
    let file = File::open(path).map_err(|e| Error::io(path, "cannot open", e))?;
    let bad = |e| Error::data(path, e);
    let reader = SerializedFileReader::new(file).map_err(bad)?;
    let schema = reader.metadata().file_metadata().schema_descr_ptr();
    let index = schema
        .columns()
        .iter()
        .position(|column| column.name() == name);
    let index = index.ok_or_else(|| Error::data(path, format!("has no column '{name}'")))?;
    let rows = reader.get_row_iter(None).map_err(bad)?;
    rows.map(|row| {
        let row = row.map_err(bad)?;
        Ok(row.get_string(index).cloned().unwrap_or_default())
    })
    .collect()
}
