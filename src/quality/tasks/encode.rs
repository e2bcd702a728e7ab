//! Requests as tokens, by lm_eval's rules (`TemplateLM._encode_pair`, `HFLM.tok_encode`).

use super::document::{Document, Request};
use super::python;
use super::task::Task;
use crate::error::{Error, Result};
use crate::model::Tokenizer;

/// How texts become tokens.
pub struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    /// Whether the tokenizer adds its own marks; its habit where `None`.
    add_special: Option<bool>,
    /// The token that stands before a continuation without a context, and its text.
    prefix: Option<(u32, String)>,
    /// Tokens of a context and a continuation without its last.
    max_length: usize,
}

/// A continuation with what it is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// The context and the continuation without its last token: what the model reads.
    pub input: Vec<u32>,
    /// The continuation: what the last tokens of the input should be followed by.
    pub targets: Vec<u32>,
    /// Tokens that were cut off the beginning.
    pub cut: usize,
}

impl<'a> Encoder<'a> {
    /// For a model that reads at most `max_length` tokens at once. `add_special` lets the tokenizer add its beginning of
    /// text or forbids it; `None` is its habit.
    ///
    /// # Errors
    /// If a text cannot be decoded.
    pub fn new(
        tokenizer: &'a Tokenizer,
        add_special: Option<bool>,
        max_length: usize,
    ) -> Result<Self> {
        let prefix = tokenizer.bos().or_else(|| tokenizer.eos().first().copied());
        let prefix = prefix.map(|id| Ok::<_, Error>((id, tokenizer.decode(&[id])?)));
        Ok(Self {
            tokenizer,
            add_special,
            prefix: prefix.transpose()?,
            max_length,
        })
    }

    /// The ids of a text. One that spells its beginning mark gets no second one.
    ///
    /// # Errors
    /// If it cannot be tokenised.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let marked = |prefix: &(u32, String)| !prefix.1.is_empty() && text.starts_with(&prefix.1);
        let add = self.add_special.unwrap_or(true) && !self.prefix.as_ref().is_some_and(marked);
        self.tokenizer.encode(text, add)
    }

    /// A request as tokens: the whole is encoded, and cut where the context alone would end. White space at the end of a
    /// context belongs to the continuation. What is too long loses its beginning.
    ///
    /// # Errors
    /// If it cannot be tokenised, or nothing is left to score.
    pub fn pair(&self, request: &Request) -> Result<Encoded> {
        self.pair_after(request, &self.context(request)?)
    }

    /// The ids of a request's context alone.
    fn context(&self, request: &Request) -> Result<Vec<u32>> {
        self.encode(request.context.trim_end_matches(python::is_space))
    }

    /// As [`Encoder::pair`], with the ids of the context at hand.
    fn pair_after(&self, request: &Request, context: &[u32]) -> Result<Encoded> {
        let (context, continuation) = if request.context.is_empty() {
            self.without_context(&request.continuation)?
        } else {
            let whole = format!("{}{}", request.context, request.continuation);
            let mut whole = self.encode(&whole)?;
            let continuation = whole.split_off(context.len().min(whole.len()));
            (context.to_vec(), continuation)
        };
        if continuation.is_empty() {
            return Err(Error::Config(format!(
                "the continuation '{}' has no tokens of its own",
                python::shortened(&request.continuation)
            )));
        }
        if context.is_empty() {
            return Err(Error::Config("the context has no tokens".into()));
        }
        if continuation.len() > self.max_length {
            return Err(Error::Config(format!(
                "a continuation of {} tokens exceeds the context of {}",
                continuation.len(),
                self.max_length
            )));
        }
        let mut input = context;
        input.extend(&continuation[..continuation.len() - 1]);
        let cut = input.len().saturating_sub(self.max_length);
        input.drain(..cut);
        Ok(Encoded {
            input,
            targets: continuation,
            cut,
        })
    }

    fn without_context(&self, continuation: &str) -> Result<(Vec<u32>, Vec<u32>)> {
        let mut ids = self.tokenizer.encode(continuation, false)?;
        let no_prefix = || {
            Error::Config(
                "a request has no context, and the model has no token that begins or ends a text"
                    .into(),
            )
        };
        let (prefix, _) = self.prefix.as_ref().ok_or_else(no_prefix)?;
        if ids.first() == Some(prefix) {
            let rest = ids.split_off(1);
            return Ok((ids, rest));
        }
        Ok((vec![*prefix], ids))
    }

    /// What a generation of up to `tokens` tokens is given, and how much was cut off its beginning.
    ///
    /// # Errors
    /// If it cannot be tokenised or leaves no room.
    pub fn prompt(&self, request: &Request, tokens: usize) -> Result<(Vec<u32>, usize)> {
        let mut ids = self.encode(&request.context)?;
        let room = self.max_length.saturating_sub(tokens);
        if room == 0 {
            return Err(Error::Config(format!(
                "{tokens} generated tokens (max_gen_toks) leave no room in a context of {}",
                self.max_length
            )));
        }
        if ids.is_empty() {
            return Err(Error::Config("the context has no tokens".into()));
        }
        let cut = ids.len().saturating_sub(room);
        ids.drain(..cut);
        Ok((ids, cut))
    }

    /// Every request of a document.
    pub(super) fn document(&self, task: &Task, document: &Document) -> Result<Vec<Encoded>> {
        let mut all: Vec<Encoded> = Vec::with_capacity(document.requests.len());
        let mut before: Option<(&Request, Vec<u32>)> = None;
        for request in &document.requests {
            let encoded = match &before {
                // Choices share their context.
                Some((other, context)) if other.context == request.context => {
                    self.pair_after(request, context)
                }
                _ => self.context(request).and_then(|context| {
                    let encoded = self.pair_after(request, &context);
                    before = Some((request, context));
                    encoded
                }),
            };
            all.push(encoded.map_err(|error| match error {
                Error::Config(what) => task.fault(document.id, what),
                other => other,
            })?);
        }
        Ok(all)
    }
}
