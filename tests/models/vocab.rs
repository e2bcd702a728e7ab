//! Tokenizers inside GGUF files, and the one real model whose ids are known.

use std::path::PathBuf;

use candlepower::model::Tokenizer;

use super::common::{assert_fails, open};
use super::gguf::model;
use super::gguf_writer::Writer;

fn tokenizer(writer: &Writer) -> Tokenizer {
    let (_folder, path) = writer.write();
    open(path).unwrap().tokenizer.unwrap()
}

/// The spelling of a byte in a byte-level vocabulary.
fn spelled(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|&b| !printable(b)).count() as u32;
    char::from_u32(256 + rank).unwrap()
}

/// A model whose vocabulary is three special tokens, a user's token, all bytes, and what `merges` make.
fn byte_level(pre: &str, merges: &[&str]) -> Writer {
    let mut tokens: Vec<String> = ["<|end|>", "<s>", "</s>", "<tool>"]
        .map(str::to_owned)
        .into();
    tokens.extend((0..=255).map(|byte| spelled(byte).to_string()));
    tokens.extend(merges.iter().map(|merge| merge.replacen(' ', "", 1)));
    let mut kinds = vec![1; tokens.len()];
    kinds[..4].copy_from_slice(&[3, 3, 3, 4]);
    embedding_for(tokens.len())
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", pre)
        .texts("tokenizer.ggml.tokens", &tokens)
        .texts("tokenizer.ggml.merges", merges)
        .i32s("tokenizer.ggml.token_type", &kinds)
}

/// The model with an embedding of `rows`.
fn embedding_for(rows: usize) -> Writer {
    let rows = rows as u64;
    ["token_embd.weight", "output.weight"]
        .into_iter()
        .fold(model("llama", 1), |writer, name| {
            let data = vec![0; rows as usize * 512];
            writer.without(name).tensor(name, &[rows, 256], 1, data)
        })
}

/// The tokens of a text, spelt out.
fn pieces(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    let ids = tokenizer.encode(text, false).unwrap();
    ids.iter()
        .map(|&id| tokenizer.decode(&[id]).unwrap())
        .collect()
}

#[test]
fn each_pre_tokenizer_splits_digits_and_newlines_its_way() {
    // Merges that would join all digits, and a punctuation mark with the line break behind it.
    let merges = ["1 2", "12 3", "123 4", "! Ċ", "Ġ a"];
    let split = |pre: &str| pieces(&tokenizer(&byte_level(pre, &merges)), "1234 a!\n").join("|");
    assert_eq!(split("gpt-2"), "1234| a|!|\n");
    assert_eq!(split("default"), "1234| a|!|\n");
    assert_eq!(split("smollm"), "1|2|3|4| a|!|\n");
    assert_eq!(split("qwen2"), "1|2|3|4| a|!\n");
    assert_eq!(split("llama-bpe"), "123|4| a|!\n");
    let (_folder, path) = byte_level("viking", &merges).write();
    assert_fails(open(path), 64, "'viking'");
}

#[test]
fn qwen_composes_characters_and_others_do_not() {
    let decomposed = "e\u{301}";
    assert_eq!(
        pieces(&tokenizer(&byte_level("qwen2", &[])), decomposed).len(),
        2
    );
    assert_eq!(
        pieces(&tokenizer(&byte_level("gpt-2", &[])), decomposed).len(),
        3
    );
}

#[test]
fn llama3_takes_whole_words_from_the_vocabulary() {
    // 'abc' is a token, but no merge leads to it from 'a b'.
    let merges = ["a b", "b c", "a bc"];
    assert_eq!(
        pieces(&tokenizer(&byte_level("gpt-2", &merges)), "abc"),
        ["ab", "c"]
    );
    assert_eq!(
        pieces(&tokenizer(&byte_level("llama-bpe", &merges)), "abc"),
        ["abc"]
    );
}

#[test]
fn special_and_user_tokens_are_found_in_text() {
    let tokenizer = tokenizer(&byte_level("gpt-2", &[]));
    assert_eq!(
        tokenizer.encode("a<|end|>b<tool>", false).unwrap(),
        [4 + 97, 0, 4 + 98, 3]
    );
    assert_eq!(tokenizer.decode(&[4 + 97, 0, 3]).unwrap(), "a<|end|><tool>");
    assert_eq!(tokenizer.token_id("</s>"), Some(2));
}

#[test]
fn marks_are_added_where_file_or_kind_says_so() {
    let a = 4 + 97;
    let encode = |writer: &Writer| tokenizer(writer).encode("a", true).unwrap();
    assert_eq!(encode(&byte_level("gpt-2", &[])), [a]);
    assert_eq!(encode(&byte_level("llama-bpe", &[])), [1, a]);
    let both = byte_level("gpt-2", &[])
        .flag("tokenizer.ggml.add_bos_token", true)
        .flag("tokenizer.ggml.add_eos_token", true);
    assert_eq!(encode(&both), [1, a, 2]);
    let neither = byte_level("llama-bpe", &[]).flag("tokenizer.ggml.add_bos_token", false);
    assert_eq!(encode(&neither), [a]);
}

/// A SentencePiece model: unknown, marks, all bytes, then `pieces` with falling scores.
fn sentence_piece(words: &[&str]) -> Writer {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).into();
    let mut kinds = vec![2, 3, 3];
    let mut scores = vec![0.0; 3];
    for byte in 0..=255u8 {
        tokens.push(format!("<0x{byte:02X}>"));
        kinds.push(6);
        scores.push(0.0);
    }
    for (i, &word) in words.iter().enumerate() {
        tokens.push(word.to_owned());
        kinds.push(1);
        scores.push(-(i as f32));
    }
    embedding_for(tokens.len())
        .text("tokenizer.ggml.model", "llama")
        .texts("tokenizer.ggml.tokens", &tokens)
        .f32s("tokenizer.ggml.scores", &scores)
        .i32s("tokenizer.ggml.token_type", &kinds)
}

#[test]
fn sentence_pieces_merge_by_score_and_fall_back_to_bytes() {
    let first = 3 + 256;
    // The better 'bc' wins over 'ab', which a left-to-right reading would prefer.
    let words = ["bc", "ab", "▁a", "▁", "a", "b", "c"];
    let tokenizer = tokenizer(&sentence_piece(&words));
    let (bc, under_a) = (first, first + 2);
    assert_eq!(tokenizer.encode("abc", false).unwrap(), [under_a, bc]);
    assert_eq!(tokenizer.encode("abc", true).unwrap(), [1, under_a, bc]);
    let e = 3 + u32::from(b'e');
    assert_eq!(
        tokenizer.encode("a e", false).unwrap(),
        [under_a, first + 3, e]
    );
    assert_eq!(
        tokenizer
            .decode(&[under_a, bc, first + 3, 3 + 0xc3, 3 + 0xa9])
            .unwrap(),
        "abc é"
    );
}

#[test]
fn the_space_before_a_text_can_be_left_out() {
    let plain = sentence_piece(&["▁", "a"]).flag("tokenizer.ggml.add_space_prefix", false);
    let tokenizer = tokenizer(&plain);
    assert_eq!(tokenizer.encode("a", false).unwrap(), [3 + 256 + 1]);
    assert_eq!(tokenizer.decode(&[3 + 256, 3 + 256 + 1]).unwrap(), " a");
}

#[test]
fn broken_vocabularies_are_refused() {
    let good = || {
        embedding_for(4)
            .text("tokenizer.ggml.model", "gpt2")
            .text("tokenizer.ggml.pre", "gpt-2")
    };
    let none: [&str; 0] = [];
    for (writer, word) in [
        (good(), "tokenizer.ggml.tokens"),
        (
            good().texts("tokenizer.ggml.tokens", &["a", "a", "b", "c"]),
            "both 'a'",
        ),
        (
            good().texts("tokenizer.ggml.tokens", &["a", "b", "c", "d"]),
            "tokenizer.ggml.merges",
        ),
        (
            good()
                .texts("tokenizer.ggml.tokens", &["a", "b", "c", "d"])
                .texts("tokenizer.ggml.merges", &["a b"]),
            "'a b' merges no tokens",
        ),
        (
            good()
                .texts("tokenizer.ggml.tokens", &["a", "b", "c", "d"])
                .texts("tokenizer.ggml.merges", &none)
                .i32s("tokenizer.ggml.token_type", &[1]),
            "1 values for 4 tokens",
        ),
        (
            good().texts("tokenizer.ggml.tokens", &["x".repeat(5000)]),
            "5000 bytes",
        ),
    ] {
        let (_folder, path) = writer.write();
        assert_fails(open(path), 65, word);
    }
    let unknown = embedding_for(4)
        .text("tokenizer.ggml.model", "bert")
        .texts("tokenizer.ggml.tokens", &["a"]);
    let (_folder, path) = unknown.write();
    assert_fails(open(path), 64, "'bert'");
}

#[test]
fn ids_beyond_the_embedding_are_refused() {
    let tokens: Vec<String> = (0..=255).map(|byte| spelled(byte).to_string()).collect();
    let writer = embedding_for(98)
        .text("tokenizer.ggml.model", "gpt2")
        .texts("tokenizer.ggml.tokens", &tokens)
        .texts::<&str>("tokenizer.ggml.merges", &[]);
    let tokenizer = tokenizer(&writer);
    assert_eq!(tokenizer.encode("a", false).unwrap(), [97]);
    assert_fails(tokenizer.encode("b", false), 65, "token id 98");
}

/// The file that the variable names.
fn named(variable: &str) -> PathBuf {
    std::env::var_os(variable)
        .unwrap_or_else(|| panic!("set {variable}"))
        .into()
}

#[test]
#[ignore = "needs SmolLM2-135M-Instruct as GGUF, named by CANDLEPOWER_SMOLLM2"]
fn smollm2_gives_the_known_ids() {
    let tokenizer = open(named("CANDLEPOWER_SMOLLM2"))
        .unwrap()
        .tokenizer
        .unwrap();
    let cases = include_str!("../fixtures/smollm2_tokens.json");
    let cases: serde_json::Value = serde_json::from_str(cases).unwrap();
    let cases = cases["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 30);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let ids = tokenizer.encode(text, true).unwrap();
        assert_eq!(serde_json::json!(ids), case["ids"], "{text:?}");
        assert_eq!(
            tokenizer.decode(&ids).unwrap(),
            case["decoded"].as_str().unwrap()
        );
    }
}

#[test]
#[ignore = "needs the same file, and WikiText-2's raw test text, named by CANDLEPOWER_WIKITEXT"]
fn smollm2_gives_the_known_number_of_tokens_for_wikitext() {
    let tokenizer = open(named("CANDLEPOWER_SMOLLM2"))
        .unwrap()
        .tokenizer
        .unwrap();
    let raw = std::fs::read_to_string(named("CANDLEPOWER_WIKITEXT")).unwrap();
    let rows: Vec<&str> = raw
        .split_inclusive('\n')
        .map(|row| if row.trim().is_empty() { "" } else { row })
        .collect();
    let text = rows.join("\n\n");
    assert_eq!(text.len(), 1_296_370);
    assert_eq!(tokenizer.encode(&text, false).unwrap().len(), 304_978);
}
