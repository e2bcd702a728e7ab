//! Text to token ids and back.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::processors::sequence::Sequence;
use tokenizers::processors::template::TemplateProcessing;

use super::config::ModelConfig;
use super::{json, tokenizer_config};
use crate::error::{Error, Result};

/// Largest `tokenizer.json` that is read.
const FILE_LIMIT: u64 = 128 << 20;

/// A model's tokenizer. Ids are checked against the model's vocabulary, so that none reaches a device that would read
/// past the embedding.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// What it was read from, for messages.
    origin: PathBuf,
    /// Rows of the model's embedding.
    limit: usize,
    bos: Option<u32>,
    eos: Vec<u32>,
    marks: Marks,
    remarks: Vec<String>,
}

/// Tokens around a text that the library's tokenizer does not add itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Marks {
    pub(super) before: Option<u32>,
    pub(super) after: Option<u32>,
}

/// A text as tokens, with where each ends in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenisedText {
    /// The ids.
    pub ids: Vec<u32>,
    /// The byte of the text at which each token ends; tokens that the tokenizer added end where they stand.
    pub ends: Vec<usize>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`, and what a `tokenizer_config.json` beside it adds.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Data`] for a file that cannot be read or does not describe a tokenizer.
    pub fn from_file(path: &Path, config: &ModelConfig) -> Result<Self> {
        let bytes = json::read_bounded(path, FILE_LIMIT)?;
        let mut tokenizer = Self::from_json(path, &bytes, config)?;
        let beside = path.with_file_name(tokenizer_config::FILE);
        if beside.is_file() {
            let strange = tokenizer_config::complete(&mut tokenizer.inner, &beside)?;
            tokenizer.remarks.extend(strange);
        }
        Ok(tokenizer)
    }

    /// Reads the content of a `tokenizer.json`; `origin` is for messages.
    pub(super) fn from_json(origin: &Path, bytes: &[u8], config: &ModelConfig) -> Result<Self> {
        check_merges(origin, bytes)?;
        // The parser is another's and has panicked on hostile files before; whatever the check above has not foreseen
        // must not take the program down.
        let parsed = catch_unwind(|| tokenizers::Tokenizer::from_bytes(bytes));
        let inner = match parsed {
            Ok(Ok(inner)) => inner,
            Ok(Err(e)) => return Err(Error::data(origin, format!("not a tokenizer: {e}"))),
            Err(_) => return Err(Error::data(origin, "not a tokenizer: its parser gave up")),
        };
        Ok(Self::new(inner, origin, config))
    }

    pub(super) fn new(
        mut inner: tokenizers::Tokenizer,
        origin: &Path,
        config: &ModelConfig,
    ) -> Self {
        // A file may carry the settings of someone's training run; a text is tokenised whole.
        inner.with_padding(None);
        // Removing the truncation cannot fail: only a new one is checked.
        let _ = inner.with_truncation(None);
        Self {
            inner,
            origin: origin.to_owned(),
            limit: config.vocab,
            bos: config.bos,
            eos: config.eos.clone(),
            marks: Marks::default(),
            remarks: Vec::new(),
        }
    }

    pub(super) fn with_marks(self, marks: Marks) -> Self {
        Self { marks, ..self }
    }

    /// The ids of a text. `add_special` lets the tokenizer put its own marks around it, as a Llama's beginning of text;
    /// what a text spells out, such as `<|im_end|>`, becomes its token either way.
    ///
    /// # Errors
    /// [`Error::Data`] if the tokenizer fails or gives an id outside the model's vocabulary.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = self.guarded(|| self.inner.encode_fast(text, add_special))?;
        let Marks { before, after } = self.marks_if(add_special);
        let ids = encoding.get_ids().iter().copied();
        self.checked(before.into_iter().chain(ids).chain(after).collect())
    }

    /// As [`Tokenizer::encode`], with where in the text each token ends.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_text(&self, text: &str, add_special: bool) -> Result<TokenisedText> {
        let encoding = self.guarded(|| self.inner.encode(text, add_special))?;
        let Marks { before, after } = self.marks_if(add_special);
        let ids = encoding.get_ids().iter().copied();
        let ids = before.into_iter().chain(ids).chain(after).collect();
        let mut end = 0;
        let inside = encoding.get_offsets().iter().map(|&(_, to)| {
            // Tokens that the tokenizer itself added have no place of their own.
            end = end.max(to);
            end
        });
        let inside: Vec<usize> = inside.collect();
        let ends = before
            .map(|_| 0)
            .into_iter()
            .chain(inside)
            .chain(after.map(|_| text.len()));
        let ends = ends.collect();
        Ok(TokenisedText {
            ids: self.checked(ids)?,
            ends,
        })
    }

    const fn marks_if(&self, wanted: bool) -> Marks {
        if wanted {
            self.marks
        } else {
            Marks {
                before: None,
                after: None,
            }
        }
    }

    /// Runs the tokenizer; as for the parser, rules that a file describes must not take the program down.
    fn guarded(
        &self,
        encode: impl FnOnce() -> tokenizers::Result<tokenizers::Encoding>,
    ) -> Result<tokenizers::Encoding> {
        match catch_unwind(AssertUnwindSafe(encode)) {
            Ok(Ok(encoding)) => Ok(encoding),
            Ok(Err(e)) => Err(self.fault(format!("cannot tokenise: {e}"))),
            Err(_) => Err(self.fault("cannot tokenise: the tokenizer gave up".to_owned())),
        }
    }

    fn checked(&self, ids: Vec<u32>) -> Result<Vec<u32>> {
        match ids.iter().find(|&&id| id as usize >= self.limit) {
            None => Ok(ids),
            Some(id) => Err(self.fault(format!(
                "gives the token id {id}, the model's vocabulary has {}",
                self.limit
            ))),
        }
    }

    /// The text of `ids`, special tokens spelt out. Bytes that are no UTF-8, as at a cut, become U+FFFD; ids that stand
    /// for nothing become nothing.
    ///
    /// # Errors
    /// [`Error::Data`] if the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.decoded(ids, false)
    }

    /// As [`Tokenizer::decode`], but special tokens become nothing.
    ///
    /// # Errors
    /// [`Error::Data`] if the tokenizer's decoder fails.
    pub fn decode_plain(&self, ids: &[u32]) -> Result<String> {
        self.decoded(ids, true)
    }

    fn decoded(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let decoded = catch_unwind(AssertUnwindSafe(|| self.inner.decode(ids, skip_special)));
        match decoded {
            Ok(Ok(text)) => Ok(text),
            Ok(Err(e)) => Err(self.fault(format!("cannot decode: {e}"))),
            Err(_) => Err(self.fault("cannot decode: the tokenizer gave up".to_owned())),
        }
    }

    /// What of its files does not fit together, each a sentence for the user.
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }

    /// The file that it was read from.
    pub fn origin(&self) -> &Path {
        &self.origin
    }

    /// The token of an id, by its own spelling.
    pub fn token_of(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// As a `tokenizer.json`, marks of beginning and end included.
    ///
    /// # Errors
    /// [`Error::Data`] if the library cannot write it.
    pub fn to_json(&self) -> Result<String> {
        let mut inner = self.inner.clone();
        if self.marks != Marks::default() {
            let added = template(&self.inner, self.marks).map_err(|e| self.fault(e))?;
            let all = inner
                .get_post_processor()
                .cloned()
                .into_iter()
                .chain([added]);
            let all = Sequence::new(all.collect());
            inner.with_post_processor(Some(PostProcessorWrapper::Sequence(all)));
        }
        let text = inner.to_string(true);
        text.map_err(|e| self.fault(format!("cannot be written as JSON: {e}")))
    }

    /// A hash of everything that decides which ids a text gets, with the algorithm in front.
    pub fn digest(&self) -> String {
        let json = self.inner.to_string(false).unwrap_or_default();
        format!("blake3:{}", blake3::hash(json.as_bytes()).to_hex())
    }

    /// Number of tokens that the tokenizer knows; the model's embedding may be padded beyond it.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The id of a token by its own spelling, as in `<|im_end|>`.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token that begins a text, where the model has one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The tokens that end a text.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    fn fault(&self, what: String) -> Error {
        Error::data(&self.origin, what)
    }
}

/// What puts marks around a text, in the library's terms.
pub(super) fn template(
    inner: &tokenizers::Tokenizer,
    marks: Marks,
) -> Result<PostProcessorWrapper, String> {
    let mut pieces = vec!["$A".to_owned()];
    let mut special = Vec::new();
    for (id, place) in [(marks.before, 0), (marks.after, usize::MAX)] {
        let Some(id) = id else { continue };
        let token = inner
            .id_to_token(id)
            .ok_or_else(|| format!("has no token {id}"))?;
        pieces.insert(place.min(pieces.len()), token.clone());
        special.push((token, id));
    }
    let fault = |e: String| format!("marks cannot be written: {e}");
    let mut builder = TemplateProcessing::builder();
    builder.try_single(pieces).map_err(fault)?;
    let template = builder.special_tokens(special).build();
    let template = template.map_err(|e| fault(e.to_string()))?;
    Ok(PostProcessorWrapper::Template(template))
}

/// Checks that both halves of every merge and their sum are in the vocabulary: the tokenizers library copies the sum into
/// a buffer of the longest token's size without looking.
fn check_merges(origin: &Path, bytes: &[u8]) -> Result<()> {
    #[derive(Deserialize)]
    struct File {
        model: Model,
    }
    #[derive(Deserialize)]
    struct Model {
        #[serde(default)]
        merges: Vec<Merge>,
        #[serde(default)]
        vocab: serde_json::Value,
        #[serde(default)]
        continuing_subword_prefix: Option<String>,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Merge {
        Pair(String, String),
        Line(String),
    }
    let model = json::parse::<File>(origin, bytes)?.model;
    let prefix = model.continuing_subword_prefix.unwrap_or_default();
    let mut whole = String::new();
    for merge in &model.merges {
        let halves = match merge {
            Merge::Pair(a, b) => Some((a.as_str(), b.as_str())),
            Merge::Line(line) => line.split_once(' '),
        };
        let Some((a, b)) = halves else {
            // A comment or a broken line: the library's own reader says which.
            continue;
        };
        whole.clear();
        whole.push_str(a);
        whole.push_str(b.strip_prefix(prefix.as_str()).unwrap_or(b));
        let known = |token: &str| model.vocab.get(token).is_some();
        if !(known(a) && known(b) && known(&whole) && b.starts_with(&prefix)) {
            return Err(Error::data(
                origin,
                format!("the merge of '{a}' and '{b}' is not in the vocabulary"),
            ));
        }
    }
    Ok(())
}
