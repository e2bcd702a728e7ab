//! Parquet files, as the hub keeps data sets: one column of texts, or whole rows.

use std::fs::File;
use std::path::Path;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row, RowAccessor};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Every value of the column `name`, in order; a null is the empty text.
///
/// # Errors
/// If the file is not parquet, or has no such column of texts.
pub(super) fn column(path: &Path, name: &str) -> Result<Vec<String>> {
    let file = File::open(path).map_err(|e| Error::reading(path, "cannot open", e))?;
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

/// Every row as an object, in order; types beyond those of JSON are refused.
///
/// # Errors
/// If the file is not parquet, or a value has no place in JSON.
pub(super) fn rows(path: &Path) -> Result<Vec<Map<String, Value>>> {
    let file = File::open(path).map_err(|e| Error::reading(path, "cannot open", e))?;
    let bad = |e| Error::data(path, e);
    let reader = SerializedFileReader::new(file).map_err(bad)?;
    let rows = reader.get_row_iter(None).map_err(bad)?;
    rows.map(|row| {
        let row = row.map_err(bad)?;
        object(&row).map_err(|what| Error::data(path, what))
    })
    .collect()
}

fn object(row: &Row) -> Result<Map<String, Value>, String> {
    row.get_column_iter()
        .map(|(name, field)| match value(field) {
            Ok(value) => Ok((name.clone(), value)),
            Err(what) => Err(format!("the column '{name}' holds {what}")),
        })
        .collect()
}

fn value(field: &Field) -> Result<Value, String> {
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(flag) => Value::Bool(*flag),
        Field::Byte(n) => Value::from(*n),
        Field::Short(n) => Value::from(*n),
        Field::Int(n) => Value::from(*n),
        Field::Long(n) => Value::from(*n),
        Field::UByte(n) => Value::from(*n),
        Field::UShort(n) => Value::from(*n),
        Field::UInt(n) => Value::from(*n),
        Field::ULong(n) => Value::from(*n),
        Field::Float(x) => Value::from(*x),
        Field::Double(x) => Value::from(*x),
        Field::Str(text) => Value::String(text.clone()),
        Field::Group(row) => Value::Object(object(row)?),
        Field::ListInternal(list) => Value::Array(
            list.elements()
                .iter()
                .map(value)
                .collect::<Result<_, _>>()?,
        ),
        other => return Err(format!("{other}, which has no place in JSON")),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parquet::basic::Compression;
    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use super::*;

    #[test]
    fn a_column_of_texts_is_read_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.parquet");
        let schema =
            parse_message_type("message rows { REQUIRED BYTE_ARRAY text (UTF8); }").unwrap();
        let settings = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .build();
        let file = File::create(&path).unwrap();
        let mut writer =
            SerializedFileWriter::new(file, Arc::new(schema), Arc::new(settings)).unwrap();
        let rows = ["", " = Title = \n", " Ünïcode .\n"];
        let mut group = writer.next_row_group().unwrap();
        let mut texts = group.next_column().unwrap().unwrap();
        let values = rows.map(ByteArray::from);
        texts
            .typed::<ByteArrayType>()
            .write_batch(&values, None, None)
            .unwrap();
        texts.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
        assert_eq!(column(&path, "text").unwrap(), rows);
        assert!(
            column(&path, "body")
                .unwrap_err()
                .to_string()
                .contains("'body'")
        );
        let whole = super::rows(&path).unwrap();
        assert_eq!(whole.len(), 3);
        assert_eq!(whole[2]["text"], " Ünïcode .\n");
        std::fs::write(&path, b"no parquet").unwrap();
        assert_eq!(super::rows(&path).unwrap_err().exit_code(), 65);
        assert_eq!(column(&path, "text").unwrap_err().exit_code(), 65);
    }
}
