//! What the `tokenizer_config.json` beside a `tokenizer.json` adds to it, as the transformers library has it.
//!
//! - Tokens under `added_tokens_decoder` that the tokenizer does not know as added ones become such: folders whose
//!   `tokenizer.json` is older than its model's chat tokens.
//! - `add_bos_token` and `add_eos_token`, where they are given, go before what the tokenizer does by itself. Version 5 of
//!   the library follows them for every model, version 4 for Llama's own class, whose files alone give them to some effect.
//!
//! `tokenizer_class` decides nothing: what the class does is written out in `tokenizer.json`.

use std::collections::{BTreeMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde::Deserialize;
use tokenizers::AddedToken;

use super::json::read_json;
use super::tokenizer::{Marks, template};
use crate::error::{Error, Result};

/// The file's name.
pub(super) const FILE: &str = "tokenizer_config.json";

/// Most tokens that one remark names.
const SHOWN: usize = 3;

#[derive(Deserialize)]
struct Settings {
    added_tokens_decoder: Option<BTreeMap<u32, Token>>,
    add_bos_token: Option<bool>,
    add_eos_token: Option<bool>,
    bos_token: Option<Name>,
    eos_token: Option<Name>,
}

#[derive(Deserialize)]
struct Token {
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    normalized: Option<bool>,
    #[serde(default)]
    special: bool,
}

/// A token by its spelling, alone or among its properties.
#[derive(Deserialize)]
#[serde(untagged)]
enum Name {
    Plain(String),
    Full { content: String },
}

impl Name {
    fn text(&self) -> &str {
        match self {
            Self::Plain(content) | Self::Full { content } => content,
        }
    }
}

/// Completes a tokenizer by the file at `path`. Gives what of it does not fit the tokenizer, in words.
pub(super) fn complete(inner: &mut tokenizers::Tokenizer, path: &Path) -> Result<Option<String>> {
    let settings: Settings = read_json(path)?;
    let strange = add_tokens(inner, settings.added_tokens_decoder.as_ref(), path)?;
    set_marks(inner, &settings, path)?;
    let hidden = strange.len().saturating_sub(SHOWN);
    let mut named = strange;
    named.truncate(SHOWN);
    if hidden > 0 {
        named.push(format!("{hidden} more"));
    }
    Ok((!named.is_empty()).then(|| {
        format!(
            "{FILE} gives tokens other ids than tokenizer.json, which counts: {}",
            named.join(", ")
        )
    }))
}

/// Adds the tokens that are missing, as long as they get the ids that they are said to have; names the others.
fn add_tokens(
    inner: &mut tokenizers::Tokenizer,
    tokens: Option<&BTreeMap<u32, Token>>,
    path: &Path,
) -> Result<Vec<String>> {
    let own = inner.get_added_tokens_decoder();
    let known: HashSet<&str> = own.values().map(|token| token.content.as_str()).collect();
    // The library numbers new tokens from the end of the vocabulary on.
    let size = inner.get_vocab_size(false);
    let after_added = own.keys().max().map_or(0, |&id| id as usize + 1);
    let mut next = size.max(after_added);
    let (mut missing, mut strange) = (Vec::new(), Vec::new());
    for (&id, token) in tokens.into_iter().flatten() {
        let own_id = inner.token_to_id(&token.content);
        if token.content.is_empty() || own_id.map_or(next, |own| own as usize) != id as usize {
            strange.push(format!("'{}' {id}", token.content));
            continue;
        }
        if known.contains(token.content.as_str()) {
            continue;
        }
        next += usize::from(own_id.is_none());
        missing.push(AddedToken {
            content: token.content.clone(),
            single_word: token.single_word,
            lstrip: token.lstrip,
            rstrip: token.rstrip,
            normalized: token.normalized.unwrap_or(!token.special),
            special: token.special,
        });
    }
    if !missing.is_empty() {
        inner
            .add_tokens(missing)
            .map_err(|e| Error::data(path, format!("key 'added_tokens_decoder': {e}")))?;
    }
    Ok(strange)
}

/// Lets a text begin and end as the settings say, where they do.
fn set_marks(inner: &mut tokenizers::Tokenizer, settings: &Settings, path: &Path) -> Result<()> {
    if settings.add_bos_token.is_none() && settings.add_eos_token.is_none() {
        return Ok(());
    }
    let id = |name: &Option<Name>| inner.token_to_id(name.as_ref()?.text());
    let (bos, eos) = (id(&settings.bos_token), id(&settings.eos_token));
    // As for the parser of tokenizers: what a file describes must not take the program down.
    let around = catch_unwind(AssertUnwindSafe(|| inner.encode("", true)));
    let Ok(Ok(around)) = around else {
        return Err(Error::data(
            path,
            "the tokenizer beside it cannot encode an empty text",
        ));
    };
    let around = around.get_ids();
    let begins = around.first().copied().filter(|id| Some(*id) == bos);
    let rest = &around[usize::from(begins.is_some())..];
    let ends = rest.last().copied().filter(|id| Some(*id) == eos);
    let chosen = |flag: Option<bool>, token: Option<u32>, own: Option<u32>| match flag {
        Some(wanted) => token.filter(|_| wanted),
        None => own,
    };
    let marks = Marks {
        before: chosen(settings.add_bos_token, bos, begins),
        after: chosen(settings.add_eos_token, eos, ends),
    };
    if (marks.before, marks.after) != (begins, ends) {
        let wanted = template(inner, marks).map_err(|e| Error::data(path, e))?;
        inner.with_post_processor(Some(wanted));
    }
    Ok(())
}
