//! Tokenizers of checkpoint folders: what stands beside a `tokenizer.json`.

use std::fs;

use candlepower::model::Tokenizer;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::common::{assert_fails, copy_of, open};

fn write(folder: &TempDir, name: &str, value: &Value) {
    fs::write(folder.path().join(name), value.to_string()).unwrap();
}

fn tokenizer(folder: &TempDir) -> Tokenizer {
    open(folder).unwrap().tokenizer.unwrap()
}

/// A folder whose `tokenizer.json` lacks the last token of its vocabulary, 279.
fn without_the_last() -> TempDir {
    let folder = copy_of("tiny-llama");
    let bytes = fs::read(folder.path().join("tokenizer.json")).unwrap();
    let mut file: Value = serde_json::from_slice(&bytes).unwrap();
    file["model"]["vocab"].as_object_mut().unwrap().remove("es");
    file["model"]["merges"].as_array_mut().unwrap().pop();
    write(&folder, "tokenizer.json", &file);
    folder
}

#[test]
fn tokens_that_only_the_config_names_are_found_in_a_text() {
    let folder = without_the_last();
    let text = "<|im_start|>of";
    assert!(tokenizer(&folder).encode(text, false).unwrap().len() > 5);
    let settings = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": {
            "1": {"content": "<s>", "special": true},
            "279": {"content": "<|im_start|>", "special": true, "normalized": false, "lstrip": false},
        },
    });
    write(&folder, "tokenizer_config.json", &settings);
    let model = open(&folder).unwrap();
    assert!(model.remarks.is_empty(), "{:?}", model.remarks);
    let tokenizer = model.tokenizer.unwrap();
    let ids = tokenizer.encode(text, false).unwrap();
    assert_eq!(ids[0], 279);
    assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    assert_eq!(tokenizer.decode_plain(&ids).unwrap(), "of");
}

#[test]
fn tokens_with_other_ids_than_the_tokenizer_gives_are_left_out_and_told_of() {
    let folder = without_the_last();
    let settings = json!({"added_tokens_decoder": {
        "7": {"content": "<s>"},
        "900": {"content": "<|im_start|>"},
    }});
    write(&folder, "tokenizer_config.json", &settings);
    let model = open(&folder).unwrap();
    let said = &model.remarks[0];
    assert!(said.contains("'<s>' 7, '<|im_start|>' 900"), "{said}");
    let tokenizer = model.tokenizer.unwrap();
    assert_eq!(tokenizer.token_id("<|im_start|>"), None);
    assert_eq!(tokenizer.token_id("<s>"), Some(1));
}

#[test]
fn marks_are_those_of_the_config_where_it_speaks_of_them() {
    let folder = copy_of("tiny-llama");
    let plain = tokenizer(&folder).encode("of", false).unwrap();
    let marked = |keys: Value| {
        let mut settings = json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}});
        for (key, value) in keys.as_object().unwrap() {
            settings[key] = value.clone();
        }
        write(&folder, "tokenizer_config.json", &settings);
        let tokenizer = tokenizer(&folder);
        assert_eq!(tokenizer.encode("of", false).unwrap(), plain);
        let ids = tokenizer.encode("of", true).unwrap();
        let at = ids.iter().position(|&id| id == plain[0]).unwrap();
        let (before, after) = (ids[..at].to_vec(), ids[at + plain.len()..].to_vec());
        (before, after, tokenizer)
    };
    let around = |keys: Value| {
        let (before, after, _) = marked(keys);
        (before, after)
    };
    assert_eq!(around(json!({})), (vec![], vec![]));
    assert_eq!(around(json!({"add_bos_token": false})), (vec![], vec![]));
    assert_eq!(around(json!({"add_eos_token": true})), (vec![], vec![2]));
    // Without a token there is nothing to add.
    let nothing = json!({"add_bos_token": true, "bos_token": null});
    assert_eq!(around(nothing), (vec![], vec![]));
    let (before, after, tokenizer) = marked(json!({"add_bos_token": true}));
    assert_eq!((before, after), (vec![1], vec![]));

    // A tokenizer that has a mark of its own keeps it, unless told otherwise.
    let text = tokenizer.to_json().unwrap();
    fs::write(folder.path().join("tokenizer.json"), text).unwrap();
    assert_eq!(around(json!({})), (vec![1], vec![]));
    assert_eq!(around(json!({"add_eos_token": true})), (vec![1], vec![2]));
    assert_eq!(around(json!({"add_bos_token": false})), (vec![], vec![]));
}

#[test]
fn a_config_of_another_form_is_refused() {
    let folder = copy_of("tiny-llama");
    for bad in [
        json!({"added_tokens_decoder": {"x": {"content": "a"}}}),
        json!({"added_tokens_decoder": ["a"]}),
        json!({"add_bos_token": "yes"}),
        json!([]),
    ] {
        write(&folder, "tokenizer_config.json", &bad);
        assert_fails(open(&folder), 65, "tokenizer_config.json");
    }
}
