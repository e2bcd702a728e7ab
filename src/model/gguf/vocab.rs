//! The tokenizer inside a GGUF file, rebuilt as the transformers library has it: byte-level BPE with its merges (model
//! `gpt2`), or SentencePiece BPE, whose merges follow from the pieces' scores (model `llama`).

use std::collections::HashMap;

use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{NFC, Prepend, Replace};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior,
};

use super::file::Metadata;
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;
use crate::model::tokenizer::{Marks, Tokenizer};

/// Longest token; real ones stay below 300 bytes.
const MAX_TOKEN: usize = 1024;

// What the format calls a token's type.
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

const LLAMA3_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Builds the tokenizer; nothing if the file has none.
pub(super) fn build(metadata: &Metadata, config: &ModelConfig) -> Result<Option<Tokenizer>> {
    let Some(model) = metadata.text("tokenizer.ggml.model")? else {
        return Ok(None);
    };
    let vocab = Vocabulary::read(metadata)?;
    let (mut inner, adds_bos) = match model {
        "gpt2" => byte_level(&vocab)?,
        "llama" => (sentence_piece(&vocab)?, true),
        other => {
            return Err(unsupported(
                metadata,
                format!("the tokenizer model '{other}'"),
                "gpt2, llama",
            ));
        }
    };
    let added = vocab
        .tokens
        .iter()
        .zip(&vocab.kinds)
        .filter_map(|(token, &kind)| {
            // A user's token is found in a text like a special one, but is text itself.
            let special = match kind {
                UNKNOWN | CONTROL => true,
                USER_DEFINED => false,
                _ => return None,
            };
            Some(AddedToken::from(token.as_str(), special).normalized(false))
        });
    inner
        .add_tokens(added)
        .map_err(|e| metadata.bad("tokenizer.ggml.tokens", e))?;

    let mark = |key: &str, default: bool, id: Option<u32>| {
        let wanted = metadata.flag(key)?.unwrap_or(default);
        Ok::<_, Error>(id.filter(|_| wanted))
    };
    let marks = Marks {
        before: mark("tokenizer.ggml.add_bos_token", adds_bos, config.bos)?,
        after: mark(
            "tokenizer.ggml.add_eos_token",
            false,
            config.eos.first().copied(),
        )?,
    };
    Ok(Some(
        Tokenizer::new(inner, metadata.path(), config).with_marks(marks),
    ))
}

fn unsupported(metadata: &Metadata, what: String, supported: &str) -> Error {
    Error::Config(format!(
        "{}: {what} is not supported (supported: {supported}); name a tokenizer.json instead",
        metadata.path().display()
    ))
}

/// The tokens of a file.
struct Vocabulary<'a> {
    metadata: &'a Metadata,
    tokens: &'a [String],
    /// The type of each token.
    kinds: Vec<i64>,
    ids: HashMap<&'a str, u32>,
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: &'a Metadata) -> Result<Self> {
        let key = "tokenizer.ggml.tokens";
        let tokens = metadata
            .texts(key)?
            .ok_or_else(|| metadata.bad(key, "missing"))?;
        let mut ids = HashMap::with_capacity(tokens.len());
        for (token, id) in tokens.iter().zip(0u32..) {
            if token.len() > MAX_TOKEN {
                return Err(metadata.bad(key, format!("token {id} has {} bytes", token.len())));
            }
            if let Some(earlier) = ids.insert(token.as_str(), id) {
                return Err(
                    metadata.bad(key, format!("tokens {earlier} and {id} are both '{token}'"))
                );
            }
        }
        let key = "tokenizer.ggml.token_type";
        let kinds = match metadata.integers(key)? {
            None => vec![NORMAL; tokens.len()],
            Some(kinds) if kinds.len() == tokens.len() => kinds.to_vec(),
            Some(kinds) => {
                return Err(metadata.bad(
                    key,
                    format!("{} values for {} tokens", kinds.len(), tokens.len()),
                ));
            }
        };
        Ok(Self {
            metadata,
            tokens,
            kinds,
            ids,
        })
    }

    /// A BPE model of these tokens and merges, which must be of these tokens.
    fn bpe(&self, merges: Vec<(String, String)>) -> BPE {
        let vocab = self.tokens.iter().cloned().zip(0u32..);
        BPE::new(vocab.collect(), merges)
    }
}

/// A byte-level tokenizer, and whether it marks the beginning of a text unless the file says otherwise.
fn byte_level(vocab: &Vocabulary<'_>) -> Result<(tokenizers::Tokenizer, bool)> {
    let metadata = vocab.metadata;
    let kind = metadata.text("tokenizer.ggml.pre")?.unwrap_or("default");
    let llama3 = matches!(kind, "llama-bpe" | "llama3" | "llama-v3");
    let split = |pattern: &str| {
        let pattern = SplitPattern::Regex(pattern.to_owned());
        Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
            .map(|split| vec![split.into(), ByteLevel::new(false, true, false).into()])
            .map_err(|e| Error::Internal(format!("a pattern of the pre-tokenizer '{kind}': {e}")))
    };
    let whole = || PreTokenizerWrapper::from(ByteLevel::new(false, true, true));
    let steps = match kind {
        "gpt-2" | "gpt2" | "default" => vec![whole()],
        "smollm" => vec![Digits::new(true).into(), whole()],
        "qwen2" | "deepseek-r1-qwen" => split(QWEN2_PATTERN)?,
        _ if llama3 => split(LLAMA3_PATTERN)?,
        other => {
            return Err(unsupported(
                metadata,
                format!("the pre-tokenizer '{other}'"),
                "default, gpt-2, smollm, llama-bpe, qwen2",
            ));
        }
    };
    let mut model = vocab.bpe(read_merges(vocab)?);
    // Llama 3 looks for a whole word in the vocabulary before it merges.
    model.ignore_merges = llama3;
    let mut inner = tokenizers::Tokenizer::new(model);
    if kind.contains("qwen") {
        set_normalizer(&mut inner, NFC)?;
    }
    inner
        .with_pre_tokenizer(Some(Sequence::new(steps)))
        .with_decoder(Some(ByteLevel::default()));
    Ok((inner, llama3))
}

fn read_merges(vocab: &Vocabulary<'_>) -> Result<Vec<(String, String)>> {
    let key = "tokenizer.ggml.merges";
    let metadata = vocab.metadata;
    let lines = metadata
        .texts(key)?
        .ok_or_else(|| metadata.bad(key, "missing"))?;
    let known = |token: &str| vocab.ids.contains_key(token);
    let parse = |line: &String| {
        // The first byte may itself be a space.
        let gap = 1 + line.bytes().skip(1).position(|byte| byte == b' ')?;
        let (left, right) = (line.get(..gap)?, line.get(gap + 1..)?);
        let all_known = known(left) && known(right) && known(&format!("{left}{right}"));
        all_known.then(|| (left.to_owned(), right.to_owned()))
    };
    lines
        .iter()
        .map(|line| {
            parse(line).ok_or_else(|| metadata.bad(key, format!("'{line}' merges no tokens")))
        })
        .collect()
}

/// A SentencePiece tokenizer, as transformers converts it.
fn sentence_piece(vocab: &Vocabulary<'_>) -> Result<tokenizers::Tokenizer> {
    let metadata = vocab.metadata;
    let mut model = vocab.bpe(merges_from_scores(vocab)?);
    model.byte_fallback = true;
    model.fuse_unk = true;
    let unknown = vocab.kinds.iter().position(|&kind| kind == UNKNOWN);
    model.unk_token = unknown.map(|id| vocab.tokens[id].clone());
    let prefixed = metadata
        .flag("tokenizer.ggml.add_space_prefix")?
        .unwrap_or(true);

    let internal = |e| Error::Internal(format!("the tokenizer's replacement of spaces: {e}"));
    let mut normalizers = Vec::<NormalizerWrapper>::new();
    let mut decoders: Vec<DecoderWrapper> = vec![
        Replace::new("▁", " ").map_err(internal)?.into(),
        ByteFallback::new().into(),
        Fuse::new().into(),
    ];
    if prefixed {
        normalizers.push(Prepend::new("▁".to_owned()).into());
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    normalizers.push(Replace::new(" ", "▁").map_err(internal)?.into());

    let mut inner = tokenizers::Tokenizer::new(model);
    set_normalizer(
        &mut inner,
        tokenizers::normalizers::Sequence::new(normalizers),
    )?;
    inner.with_decoder(Some(tokenizers::decoders::sequence::Sequence::new(
        decoders,
    )));
    Ok(inner)
}

fn set_normalizer(
    inner: &mut tokenizers::Tokenizer,
    normalizer: impl Into<NormalizerWrapper>,
) -> Result<()> {
    let set = inner.with_normalizer(Some(normalizer));
    set.map(drop)
        .map_err(|e| Error::Internal(format!("the tokenizer's normaliser: {e}")))
}

/// Every split of a piece into two others is a merge; better pieces come first, among the splits of one the longer left
/// part.
fn merges_from_scores(vocab: &Vocabulary<'_>) -> Result<Vec<(String, String)>> {
    let key = "tokenizer.ggml.scores";
    let metadata = vocab.metadata;
    let scores = metadata
        .floats(key)?
        .ok_or_else(|| metadata.bad(key, "missing"))?;
    if scores.len() != vocab.tokens.len() {
        return Err(metadata.bad(
            key,
            format!("{} values for {} tokens", scores.len(), vocab.tokens.len()),
        ));
    }
    let is_piece = |part: &str| {
        vocab
            .ids
            .get(part)
            .is_some_and(|&id| vocab.kinds[id as usize] == NORMAL)
    };
    let mut merges = Vec::new();
    for (piece, &score) in vocab.tokens.iter().zip(scores) {
        if !is_piece(piece) {
            continue;
        }
        for (at, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(at);
            if is_piece(left) && is_piece(right) {
                merges.push((score, left, right));
            }
        }
    }
    let length = |part: &str| part.chars().count();
    merges.sort_by(|(a, left, right), (b, other_left, other_right)| {
        b.total_cmp(a)
            .then_with(|| length(other_left).cmp(&length(left)))
            .then_with(|| length(other_right).cmp(&length(right)))
    });
    let owned = merges
        .into_iter()
        .map(|(_, left, right)| (left.to_owned(), right.to_owned()));
    Ok(owned.collect())
}
