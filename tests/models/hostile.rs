//! Files that are cut, flipped or made to overflow: an error each time, never a panic.

use std::fs;
use std::path::Path;

use candlepower::error::Result;
use candlepower::model::{HostSliceMut, Model};
use proptest::prelude::*;

use super::common::{assert_fails, copy_of, fixture, open};
use super::gguf::{metadata, model};
use super::gguf_writer::{Writer, plain, write_bytes};

/// Opens a source and, if that works, uses all of it.
fn exercise(source: impl AsRef<Path>) -> Result<Model> {
    let model = open(source)?;
    let mut row = Vec::new();
    for wanted in model.config.tensors() {
        row.resize(*wanted.shape.last().unwrap(), 0.0);
        model
            .weights
            .read_rows(&wanted.name, 0..1, HostSliceMut::F32(&mut row))?;
    }
    if let Some(tokenizer) = &model.tokenizer {
        let ids = tokenizer.encode("The 1st <s> test\n\n of é", true)?;
        tokenizer.decode(&ids)?;
    }
    Ok(model)
}

/// Writes a safetensors file of this header over the fixture's.
fn with_header(header: &str, data: usize) -> Result<Model> {
    let folder = copy_of("tiny-llama");
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    exercise(&folder)
}

#[test]
fn hostile_safetensors_headers_are_refused() {
    for (header, data, word) in [
        (
            r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}"#,
            4,
            "do not take",
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}}"#,
            4,
            "truncated or corrupt",
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#,
            4,
            "'a'",
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#,
            4,
            "do not take",
        ),
        (
            r#"{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}"#,
            4,
            "'F99'",
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
            8,
            "belong to no tensor",
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
            8,
            "gap",
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
            4,
            "overlaps",
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
            4,
            "'a' comes twice",
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#,
            4,
            "bad JSON",
        ),
        (r#"{"a":{}}"#, 0, "'a'"),
        ("[]", 0, "bad JSON"),
        ("", 0, "bad JSON"),
    ] {
        assert_fails(with_header(header, data), 65, word);
    }
    assert_fails(with_header(&"[".repeat(100_000), 0), 65, "bad JSON");
}

#[test]
fn a_header_longer_than_its_file_is_refused() {
    for length in [u64::MAX, 1 << 40, 99_999_999, 100] {
        let folder = copy_of("tiny-llama");
        fs::write(
            folder.path().join("model.safetensors"),
            length.to_le_bytes(),
        )
        .unwrap();
        assert_fails(open(&folder), 65, "longer than it may be");
    }
}

#[test]
fn truncated_safetensors_are_refused_at_every_point() {
    let folder = copy_of("tiny-qwen3");
    let path = folder.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    for i in 0..150 {
        fs::write(&path, &bytes[..bytes.len() * i / 150]).unwrap();
        assert!(exercise(&folder).is_err(), "cut at {i}/150");
    }
}

#[test]
fn hostile_gguf_headers_are_refused() {
    let huge = |dims: &[u64]| metadata("llama").tensor("token_embd.weight", dims, 0, vec![0; 64]);
    let twice = model("llama", 0).tensor("output_norm.weight", &[256], 0, vec![0; 1024]);
    for (writer, word) in [
        (
            model("llama", 0).u32("general.alignment", 0),
            "no power of two",
        ),
        (
            model("llama", 0).u32("general.alignment", 24),
            "no power of two",
        ),
        (
            model("llama", 0).raw("general.alignment", 10, &(1u64 << 63).to_le_bytes()),
            "behind the end",
        ),
        (
            model("llama", 0).u32("general.alignment", 4096),
            "not aligned",
        ),
        (
            model("llama", 0).text("general.alignment", "32"),
            "expected a whole number",
        ),
        (huge(&[1 << 32, 1 << 32]), "impossible dimensions"),
        (huge(&[4, (1 << 62) + 1]), "impossible dimensions"),
        (huge(&[1 << 40, 1]), "behind the end"),
        (huge(&[0, 4]), "impossible dimensions"),
        (huge(&[1, 1, 1, 1, 1]), "5 dimensions"),
        (huge(&[]), "0 dimensions"),
        (
            metadata("llama").tensor("t", &[4, 33], 2, vec![0; 64]),
            "blocks of Q4_0",
        ),
        (twice, "comes twice"),
        (
            model("llama", 0).u32("llama.block_count", 1),
            "'llama.block_count' comes twice",
        ),
        (
            model("llama", 0).raw("x", 8, &u64::MAX.to_le_bytes()),
            "bytes of text",
        ),
        (model("llama", 0).raw("x", 13, &[]), "unknown value type 13"),
        (model("llama", 0).raw("x", 7, &[2]), "truth value"),
        (
            model("llama", 0).raw(
                "x",
                9,
                &[8, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255],
            ),
            "strings",
        ),
        (
            model("llama", 0).raw("x", 9, &[9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0].repeat(50)),
            "too deep",
        ),
    ] {
        let (_folder, path) = writer.write();
        assert_fails(exercise(path), 65, word);
    }
}

#[test]
fn gguf_counts_beyond_the_file_are_refused() {
    let good = model("llama", 0).bytes();
    for (at, word) in [(8, "tensors"), (16, "metadata entries")] {
        for count in [u64::MAX, 1 << 40, 1 << 20] {
            let mut bytes = good.clone();
            bytes[at..at + 8].copy_from_slice(&count.to_le_bytes());
            let (_folder, path) = write_bytes(&bytes);
            assert_fails(open(path), 65, word);
        }
    }
}

/// A small file with a tokenizer, most of it header.
fn small_gguf() -> Vec<u8> {
    let tokens = [
        "<unk>", "<s>", "</s>", "a", "b", "ab", "▁", "c", "d", "e", "f", "g",
    ];
    let writer = model("llama", 8)
        .text("tokenizer.ggml.model", "llama")
        .texts("tokenizer.ggml.tokens", &tokens)
        .f32s("tokenizer.ggml.scores", &[0.0; 12])
        .i32s(
            "tokenizer.ggml.token_type",
            &[2, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1],
        )
        .tensor("rope_freqs.weight", &[32], 0, plain(0, &[1.0; 32]));
    writer.bytes()
}

#[test]
fn truncated_gguf_files_are_refused_at_every_point() {
    let bytes = small_gguf();
    let (_folder, path) = write_bytes(&bytes);
    exercise(path).expect("the whole file is sound");
    for i in 0..200 {
        let (_folder, path) = write_bytes(&bytes[..bytes.len() * i / 200]);
        assert!(exercise(path).is_err(), "cut at {i}/200");
    }
    for cut in 0..1500 {
        let (_folder, path) = write_bytes(&bytes[..cut]);
        assert!(exercise(path).is_err(), "cut at {cut}");
    }
}

/// Flips bits of `bytes`; the positions are fractions of its first `span` bytes.
fn flip(bytes: &mut [u8], span: usize, flips: &[(f64, u8)]) {
    for &(place, mask) in flips {
        bytes[(place * span as f64) as usize] ^= mask;
    }
}

fn flips() -> impl Strategy<Value = Vec<(f64, u8)>> {
    proptest::collection::vec((0.0..1.0f64, 1u8..), 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn flipped_bits_in_a_gguf_header_never_panic(flips in flips()) {
        let mut bytes = small_gguf();
        flip(&mut bytes, 3000, &flips);
        let (_folder, path) = write_bytes(&bytes);
        let _ = exercise(path);
    }

    #[test]
    fn flipped_bits_in_a_safetensors_header_never_panic(flips in flips()) {
        let folder = copy_of("tiny-qwen3");
        let path = folder.path().join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        flip(&mut bytes, 3000, &flips);
        fs::write(path, bytes).unwrap();
        let _ = exercise(&folder);
    }

    #[test]
    fn flipped_bits_in_the_json_files_never_panic(flips in flips()) {
        for name in ["config.json", "tokenizer.json", "generation_config.json"] {
            let folder = copy_of("tiny-llama");
            let path = folder.path().join(name);
            let mut bytes = fs::read(&path).unwrap();
            let span = bytes.len();
            flip(&mut bytes, span, &flips);
            fs::write(path, bytes).unwrap();
            let _ = exercise(&folder);
        }
    }
}

#[test]
fn broken_tokenizers_are_refused() {
    for (text, word) in [
        (
            r#"{"version":"1.0","model":{"type":"BPE","vocab":{"a":0,"b":1},"merges":["a b"]}}"#,
            "merge of 'a' and 'b'",
        ),
        (
            r#"{"version":"1.0","model":{"type":"BPE","vocab":{"a":0,"b":1},"merges":[["a","b"]]}}"#,
            "merge of 'a' and 'b'",
        ),
        (r#"{"version":"1.0"}"#, "model"),
        ("{", "bad JSON"),
        ("", "bad JSON"),
    ] {
        let folder = copy_of("tiny-llama");
        fs::write(folder.path().join("tokenizer.json"), text).unwrap();
        assert_fails(open(&folder), 65, word);
    }
    let source = fs::read_to_string(fixture("tiny-llama").join("tokenizer.json")).unwrap();
    let folder = copy_of("tiny-llama");
    fs::write(
        folder.path().join("tokenizer.json"),
        source.replacen("\"!\": 3,", "\"!\": 4000,", 1),
    )
    .unwrap();
    let tokenizer = open(&folder).unwrap().tokenizer.unwrap();
    assert_fails(tokenizer.encode("!", false), 65, "token id 4000");
}

#[test]
fn a_writer_of_nothing_is_refused() {
    let (_folder, path) = Writer::new().write();
    assert_fails(open(path), 65, "general.architecture");
    let (_folder, path) = write_bytes(b"");
    assert_fails(open(path), 65, "model.gguf");
}
