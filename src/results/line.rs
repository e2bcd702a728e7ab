//! One line of `records.jsonl`: a record as JSON, sealed with a checksum that is itself a JSON field, so that the file
//! stays what every JSON Lines reader expects.

use super::record::{Key, Record};
use super::store::Entry;

/// How the seal begins; what follows is [`DIGITS`] hex digits and `"}`.
const SEAL: &str = r#","checksum":""#;

/// Hex digits of BLAKE3 that a line carries: 64 bits.
const DIGITS: usize = 16;

/// The line of a record, without the newline; the error says why the record could not be read back. JSON has no word for
/// a number that is not finite, so a measurement that gave one must be recorded as a failure.
pub(super) fn encode<R: Entry>(record: &R) -> Result<String, String> {
    let mut line = record.to_json();
    let sum = checksum(&line);
    line.pop();
    line.push_str(SEAL);
    line.push_str(&sum);
    line.push_str("\"}");
    decode::<R>(&line)?;
    Ok(line)
}

/// The record of a line; the error says what is wrong with it. A line without a checksum is taken as it is, since other
/// programs may have written it.
pub(super) fn decode<R: Entry>(line: &str) -> Result<R, String> {
    if let Some((body, sum)) = unsealed(line) {
        let found = checksum(&format!("{body}}}"));
        if found != sum {
            return Err(format!("the checksum is {sum}, the content gives {found}"));
        }
    }
    R::from_json(line)
}

impl Entry for Record {
    fn key(&self) -> &Key {
        &self.key
    }

    fn to_json(&self) -> String {
        serde_json::to_string(self).expect("plain data becomes JSON")
    }

    fn from_json(text: &str) -> Result<Self, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }
}

/// The line before its seal, and the checksum in it.
fn unsealed(line: &str) -> Option<(&str, &str)> {
    let (body, sum) = line.strip_suffix("\"}")?.rsplit_once(SEAL)?;
    (sum.len() == DIGITS).then_some((body, sum))
}

fn checksum(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex()[..DIGITS].to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::record::Body;
    use super::*;
    use crate::results::fixture;

    #[test]
    fn a_record_survives_its_line() {
        for record in fixture::records() {
            let line = encode(&record).unwrap();
            assert!(!line.contains('\n'));
            assert_eq!(decode::<Record>(&line).unwrap(), record);
            let value: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert_eq!(value["schema"], "candlepower.record/1");
            assert!(value["kind"].is_string() && value["status"].is_string());
        }
    }

    #[test]
    fn a_changed_digit_is_noticed() {
        let line = encode(&fixture::records().swap_remove(0)).unwrap();
        let changed = line.replacen("\"tokens_total\":", "\"tokens_total\":1", 1);
        assert_ne!(line, changed);
        assert!(decode::<Record>(&changed).unwrap_err().contains("checksum"));
        let newer = line.replace("record/1", "record/2");
        assert!(decode::<Record>(&newer).is_err());
    }

    #[test]
    fn what_could_not_be_read_back_is_not_written() {
        let mut record = fixture::records().swap_remove(0);
        let Body::Quality { outcome, .. } = &mut record.body else {
            panic!("the first record is of quality");
        };
        outcome.as_mut().unwrap().segments[3].nll = f64::NAN;
        assert!(encode(&record).is_err());
    }
}
