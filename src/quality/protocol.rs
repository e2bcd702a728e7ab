//! What is scored: the protocols by which perplexities are published, each a rule for cutting a text into windows.
//!
//! | name | windows | what is scored | after |
//! |---|---|---|---|
//! | `gptq` | one stream, cut every `context` tokens, the rest dropped | all but each window's first token | the GPTQ, AWQ and SmoothQuant papers (IST-DASLab/gptq `llama.py`, llm-awq `entry.py`) |
//! | `llama.cpp` | the same of the file as it is, the first token of each replaced by the one that begins a text, where the tokenizer adds one | the second half | llama.cpp `tools/perplexity` |
//! | `sliding` | one stream, a window every `stride` tokens | what the window before has not scored | transformers' guide to perplexity of models with a fixed length |
//! | `lm_eval` | each document alone; the first window begins with the token that begins or ends a text, each further one with the last token of the one before, the last reaches as far back as fits | every token | lm_eval's `loglikelihood_rolling` |
//!
//! Their figures do not compare with each other. The guide of `sliding` weighs every window but the first by one token
//! less than it scores; here each token counts once.

use std::fmt;
use std::str::FromStr;

use super::corpus::{Document, Text, TextFormat};
use crate::error::{Error, Result};
use crate::model::{TokenisedText, Tokenizer};

/// A way to cut a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Windows side by side, all but the first token of each scored.
    Gptq,
    /// Windows side by side, the second half of each scored.
    LlamaCpp,
    /// Windows that overlap, each token scored once.
    Sliding,
    /// Documents one by one, every token scored.
    LmEval,
}

impl Rule {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Gptq, Self::LlamaCpp, Self::Sliding, Self::LmEval];

    /// The name on the command line and in records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gptq => "gptq",
            Self::LlamaCpp => "llama.cpp",
            Self::Sliding => "sliding",
            Self::LmEval => "lm_eval",
        }
    }

    /// The context that figures by this rule are published with: 512 for llama.cpp, else 2048 (lm_eval's own is as much
    /// as the model can take).
    pub const fn usual_context(self) -> usize {
        match self {
            Self::LlamaCpp => 512,
            _ => 2048,
        }
    }

    /// What its authors make of a raw WikiText file.
    pub const fn wikitext(self) -> TextFormat {
        match self {
            Self::Gptq | Self::Sliding => TextFormat::Rows,
            Self::LlamaCpp => TextFormat::Plain,
            Self::LmEval => TextFormat::Pages,
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|rule| rule.name() == name);
        found.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("'{name}' is no protocol; there are {names}")
        })
    }
}

/// A rule with its numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Protocol {
    /// How the text is cut.
    pub rule: Rule,
    /// The most tokens that a prediction may follow from, and the length of a window (one more under `lm_eval`, whose
    /// windows predict as many as they read).
    pub context: usize,
    /// Tokens from one window to the next, for [`Rule::Sliding`] alone; half of the context where `None`.
    pub stride: Option<usize>,
    /// At most this many segments, from the start; all where `None`. A segment is a window, under `lm_eval` a document.
    pub segments: Option<usize>,
}

/// Tokens that run together, and how many of them are given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// All of them.
    pub tokens: Vec<u32>,
    /// The first that is scored, at least 1; so are all behind it.
    pub first: usize,
    /// The segment that it belongs to.
    pub segment: usize,
}

impl Window {
    /// The tokens that the model reads.
    pub fn given(&self) -> &[u32] {
        &self.tokens[..self.tokens.len() - 1]
    }

    /// The tokens that it is to predict.
    pub fn scored(&self) -> &[u32] {
        &self.tokens[self.first..]
    }
}

/// A text as a protocol cuts it for one tokenizer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// In the order of the text.
    pub windows: Vec<Window>,
    /// How many segments they make, which is what errors are estimated over.
    pub segments: usize,
    /// Tokens of the whole text.
    pub tokens_total: u64,
    /// UTF-8 bytes that the scored tokens stand for; under `lm_eval` those of the original.
    pub bytes_scored: u64,
    /// Words of the original, under `lm_eval` alone.
    pub words_scored: Option<u64>,
    /// A hash of the text up to the last scored token, with the algorithm in front.
    pub digest: String,
}

impl Layout {
    /// How many tokens are scored.
    pub fn tokens_scored(&self) -> u64 {
        self.windows.iter().map(|w| w.scored().len() as u64).sum()
    }

    /// The most tokens that a window makes the model read.
    pub fn longest(&self) -> usize {
        let lengths = self.windows.iter().map(|w| w.given().len());
        lengths.max().unwrap_or(0)
    }
}

/// A window of a stream, by the tokens that it spans and the first that it scores.
struct Span {
    from: usize,
    to: usize,
    first: usize,
}

impl Protocol {
    /// Its name in records.
    pub const fn name(&self) -> &'static str {
        self.rule.name()
    }

    /// Tokens from one window to the next, where that is a choice.
    pub fn stride(&self) -> Option<usize> {
        (self.rule == Rule::Sliding).then(|| self.stride.unwrap_or(self.context.div_ceil(2)))
    }

    /// Refuses numbers that no text could be scored with.
    ///
    /// # Errors
    /// [`Error::Usage`] that names the flag.
    pub fn check(&self) -> Result<()> {
        let least = match self.rule {
            // Its second half must hold a token and what it follows from.
            Rule::LlamaCpp => 4,
            Rule::LmEval => 1,
            Rule::Gptq | Rule::Sliding => 2,
        };
        if self.context < least {
            return Err(Error::Usage(format!(
                "a segment of the protocol {} needs at least {least} tokens: raise --context (of a study, --ppl-context)",
                self.rule
            )));
        }
        match self.stride {
            Some(_) if self.rule != Rule::Sliding => Err(Error::Usage(format!(
                "--stride is for --protocol sliding, not {}",
                self.rule
            ))),
            Some(stride) if stride == 0 || stride > self.context => Err(Error::Usage(format!(
                "--stride {stride} does not lie between 1 and the context of {}",
                self.context
            ))),
            _ => Ok(()),
        }
    }

    /// Cuts a text as `tokenizer` reads it.
    ///
    /// # Errors
    /// If the numbers are wrong, the text is too short, or it cannot be tokenised.
    pub fn lay_out(&self, text: &Text, tokenizer: &Tokenizer) -> Result<Layout> {
        self.check()?;
        if self.rule == Rule::LmEval {
            return self.lay_out_documents(text, tokenizer);
        }
        let stream = text.stream();
        let stream = match self.rule {
            // As its reader of files takes the last newline away.
            Rule::LlamaCpp => stream.strip_suffix('\n').unwrap_or(&stream),
            _ => &stream,
        };
        let tokens = tokenizer.encode_text(stream, true)?;
        let begin = match self.rule {
            Rule::LlamaCpp => added_beginning(tokenizer)?,
            _ => None,
        };
        self.lay_out_stream(stream, &tokens, begin)
    }

    fn lay_out_stream(
        &self,
        stream: &str,
        tokens: &TokenisedText,
        begin: Option<u32>,
    ) -> Result<Layout> {
        let spans = self.spans(tokens.ids.len())?;
        let mut bytes_scored = 0;
        let mut end = 0;
        let cut = |(segment, span): (usize, &Span)| {
            let mut ids = tokens.ids[span.from..span.to].to_vec();
            if let Some(begin) = begin {
                ids[0] = begin;
            }
            bytes_scored += tokens.ends[span.to - 1] - tokens.ends[span.first - 1];
            end = tokens.ends[span.to - 1];
            Window {
                tokens: ids,
                first: span.first - span.from,
                segment,
            }
        };
        let windows: Vec<Window> = spans.iter().enumerate().map(cut).collect();
        Ok(Layout {
            segments: windows.len(),
            windows,
            tokens_total: tokens.ids.len() as u64,
            bytes_scored: bytes_scored as u64,
            words_scored: None,
            digest: digest([&stream[..end]]),
        })
    }

    /// The windows of a stream of `total` tokens.
    fn spans(&self, total: usize) -> Result<Vec<Span>> {
        let context = self.context;
        let side_by_side = |first: usize| -> Vec<Span> {
            (0..total / context)
                .map(|i| Span {
                    from: i * context,
                    to: (i + 1) * context,
                    first: i * context + first,
                })
                .collect()
        };
        let mut spans = match self.rule {
            Rule::LlamaCpp => side_by_side(context / 2 + 1),
            Rule::Sliding => self.sliding(total),
            Rule::Gptq | Rule::LmEval => side_by_side(1),
        };
        // llama.cpp refuses a text of less than two contexts.
        let least = if self.rule == Rule::LlamaCpp { 2 } else { 1 };
        if spans.len() < least {
            let needed = match self.rule {
                Rule::Sliding => "two".to_owned(),
                Rule::LlamaCpp => format!("two segments of {context}"),
                _ => format!("one segment of {context}"),
            };
            return Err(Error::Config(format!(
                "the text has {total} tokens, fewer than {needed}: give a longer text or a smaller --context (of a study, --ppl-context)",
            )));
        }
        spans.truncate(self.segments.unwrap_or(usize::MAX));
        Ok(spans)
    }

    fn sliding(&self, total: usize) -> Vec<Span> {
        let stride = self.stride().unwrap_or(self.context);
        let mut spans = Vec::new();
        let (mut from, mut scored) = (0, 0);
        while scored < total {
            let to = (from + self.context).min(total);
            // Nothing stands before the first token of a window to predict it from.
            let first = scored.max(from + 1);
            if first < to {
                spans.push(Span { from, to, first });
            }
            scored = to;
            from += stride;
        }
        spans
    }

    fn lay_out_documents(&self, text: &Text, tokenizer: &Tokenizer) -> Result<Layout> {
        let prefix = tokenizer.bos().or(tokenizer.eos().first().copied());
        let prefix = prefix.ok_or_else(|| {
            Error::Config(
                "the protocol lm_eval begins a document with the token that begins or ends a text, and this model \
                 names neither: choose another --protocol"
                    .into(),
            )
        })?;
        let whole = text.documents.iter().filter(|d| !d.content.is_empty());
        let documents: Vec<&Document> = whole.take(self.segments.unwrap_or(usize::MAX)).collect();
        let mut layout = Layout {
            windows: Vec::new(),
            segments: documents.len(),
            tokens_total: 0,
            bytes_scored: documents.iter().map(|d| d.bytes).sum(),
            words_scored: Some(documents.iter().map(|d| d.words).sum()),
            digest: digest(documents.iter().map(|d| d.content.as_str())),
        };
        for (segment, document) in documents.into_iter().enumerate() {
            let ids = tokenizer.encode(&document.content, true)?;
            layout.tokens_total += ids.len() as u64;
            layout
                .windows
                .extend(rolling(&ids, prefix, self.context, segment));
        }
        Ok(layout)
    }
}

/// The windows of a document, each token predicted once: from a context of one token in whole windows, from as much as
/// fits in the last (lm_eval `get_rolling_token_windows` with a context of one, and `make_disjoint_window`).
fn rolling(ids: &[u32], prefix: u32, context: usize, segment: usize) -> Vec<Window> {
    let mut stream = vec![prefix];
    stream.extend(ids);
    let mut windows = Vec::new();
    let mut done = 0;
    while done < ids.len() {
        let end = (done + context).min(ids.len());
        // Token `i` of the document stands at `i + 1` of the stream.
        let from = if done == 0 { 0 } else { end - context.min(end) };
        windows.push(Window {
            tokens: stream[from..=end].to_vec(),
            first: done + 1 - from,
            segment,
        });
        done = end;
    }
    windows
}

/// The token that the tokenizer puts before a text, where it does.
fn added_beginning(tokenizer: &Tokenizer) -> Result<Option<u32>> {
    let added = tokenizer.encode("", true)?;
    Ok(added
        .first()
        .copied()
        .filter(|_| tokenizer.bos() == added.first().copied()))
}

fn digest<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hasher = blake3::Hasher::new();
    for (number, part) in parts.into_iter().enumerate() {
        if number > 0 {
            hasher.update(&[0]);
        }
        hasher.update(part.as_bytes());
    }
    format!("blake3:{}", hasher.finalize().to_hex())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn protocol(rule: Rule, context: usize, stride: Option<usize>) -> Protocol {
        Protocol {
            rule,
            context,
            stride,
            segments: None,
        }
    }

    fn cut(protocol: &Protocol, total: usize) -> Vec<(usize, usize, usize)> {
        let spans = protocol.spans(total).unwrap();
        spans.iter().map(|s| (s.from, s.first, s.to)).collect()
    }

    #[test]
    fn segments_do_not_overlap_and_the_tail_is_dropped() {
        let gptq = protocol(Rule::Gptq, 4, None);
        assert_eq!(cut(&gptq, 11), [(0, 1, 4), (4, 5, 8)]);
        let first = Protocol {
            segments: Some(1),
            ..gptq
        };
        assert_eq!(cut(&first, 11).len(), 1);
        let long = protocol(Rule::Gptq, 12, None).spans(11);
        assert_eq!(long.err().unwrap().exit_code(), 64);
    }

    #[test]
    fn llama_cpp_scores_the_second_half() {
        // With n_ctx = 8, the logits after tokens 4 to 6 predict tokens 5 to 7.
        let llama = protocol(Rule::LlamaCpp, 8, None);
        assert_eq!(cut(&llama, 17), [(0, 5, 8), (8, 13, 16)]);
        assert_eq!(llama.spans(15).err().unwrap().exit_code(), 64);
    }

    #[test]
    fn sliding_windows_score_every_token_but_the_first_once() {
        let sliding = protocol(Rule::Sliding, 6, Some(2));
        assert_eq!(cut(&sliding, 9), [(0, 1, 6), (2, 6, 8), (4, 8, 9)]);
        for (total, stride) in [(2, 1), (6, 6), (50, 5), (51, 6), (13, 1)] {
            let spans = protocol(Rule::Sliding, 7, Some(stride))
                .spans(total)
                .unwrap();
            let scored: Vec<usize> = spans.iter().flat_map(|s| s.first..s.to).collect();
            assert_eq!(
                scored,
                (1..total).collect::<Vec<_>>(),
                "{total} by {stride}"
            );
            assert!(spans.iter().all(|s| s.to - s.from <= 7));
        }
        // Without an overlap the first token of each window has nothing before it, and a tail of one token is not scored.
        assert_eq!(
            cut(&protocol(Rule::Sliding, 7, Some(7)), 15),
            [(0, 1, 7), (7, 8, 14)]
        );
    }

    #[test]
    fn rolling_windows_are_those_of_lm_eval() {
        // tests/test_utils.py of lm_eval, test_get_rolling_token_windows_v1 and make_disjoint_window: M = 10.
        let ids: Vec<u32> = (0..34).collect();
        let found: Vec<(Vec<u32>, Vec<u32>)> = rolling(&ids, 100, 10, 3)
            .iter()
            .map(|w| (w.tokens[..w.first].to_vec(), w.scored().to_vec()))
            .collect();
        let expected: Vec<(Vec<u32>, Vec<u32>)> = vec![
            (vec![100], (0..10).collect()),
            (vec![9], (10..20).collect()),
            (vec![19], (20..30).collect()),
            ((23..30).collect(), (30..34).collect()),
        ];
        assert_eq!(found, expected);
        let short = rolling(&ids[..3], 100, 10, 0);
        assert_eq!(short.len(), 1);
        assert_eq!((short[0].given(), short[0].first), (&[100, 0, 1][..], 1));
        for context in 1..12 {
            let windows = rolling(&ids, 100, context, 0);
            let scored: Vec<u32> = windows.iter().flat_map(|w| w.scored().to_vec()).collect();
            assert_eq!(scored, ids);
            assert!(windows.iter().all(|w| w.given().len() <= context));
        }
    }

    #[test]
    fn numbers_that_score_nothing_are_refused() {
        for (rule, context, stride, flag) in [
            (Rule::Gptq, 1, None, "--context"),
            (Rule::LlamaCpp, 3, None, "--context"),
            (Rule::LmEval, 0, None, "--context"),
            (Rule::Gptq, 8, Some(4), "--stride"),
            (Rule::Sliding, 8, Some(0), "--stride"),
            (Rule::Sliding, 8, Some(9), "--stride"),
        ] {
            let error = protocol(rule, context, stride).check().unwrap_err();
            assert!(error.to_string().contains(flag), "{error}");
            assert_eq!(error.exit_code(), 2);
        }
        assert!("gptq2".parse::<Rule>().unwrap_err().contains("llama.cpp"));
        assert_eq!("lm_eval".parse(), Ok(Rule::LmEval));
    }
}
