//! The text that `ppl` and `study` score, and how it is cut.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::args::first_given;
use super::parse;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::quality::{Protocol, Rule, TextFormat};
use crate::study::{BasePlan, QualityPlan, usual_context};

/// Tokens of a base that are kept one by one.
const TOP_K: usize = 256;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum FormatFlag {
    /// Recognised by content
    Auto,
    /// Rows of a raw WikiText file, joined with blank lines
    Rows,
    /// Pages of a raw WikiText file, each a document, as lm_eval writes them
    Pages,
    /// The file as it is
    Plain,
    /// A JSON object a line
    Jsonl,
}

impl FormatFlag {
    fn format(self) -> TextFormat {
        match self {
            Self::Auto => TextFormat::Auto,
            Self::Rows => TextFormat::Rows,
            Self::Pages => TextFormat::Pages,
            Self::Plain => TextFormat::Plain,
            Self::Jsonl => TextFormat::Jsonl,
        }
    }
}

/// The text that `ppl` and `study` score, and how it is cut.
#[derive(Args)]
#[command(next_help_heading = "Quality")]
pub(super) struct TextFlags {
    /// Text to score: a file, a folder, or wikitext2 (from the hub) [default: the text that comes with tiny]
    #[arg(long, value_name = "PATH")]
    text: Option<PathBuf>,
    /// How a file becomes a text [default: auto]
    #[arg(long, value_enum, value_name = "FORMAT")]
    text_format: Option<FormatFlag>,
    /// The field of JSON lines that holds the text [default: text]
    #[arg(long, value_name = "NAME")]
    field: Option<String>,
    /// How the text is cut and scored: gptq, llama.cpp, sliding or lm_eval; their figures do not compare [default: gptq]
    #[arg(long, value_name = "NAME")]
    protocol: Option<Rule>,
    /// Tokens from one window of --protocol sliding to the next [default: half of the context]
    #[arg(long, value_name = "N", value_parser = parse::positive)]
    stride: Option<usize>,
    /// Folder that keeps what the base predicts, for variants to be compared with; a file in it serves every later run of
    /// the same base on the same text [default: base-logits in candlepower's cache folder; of a study, in its own folder]
    #[arg(long, value_name = "DIR")]
    base_logits: Option<PathBuf>,
    /// How many of the base's most likely tokens are kept one by one, the rest as one: a number, or all [default: 256]
    #[arg(long, value_name = "K", value_parser = parse_top_k)]
    base_top_k: Option<TopK>,
}

/// A number of tokens, or all.
#[derive(Clone, Copy)]
struct TopK(Option<usize>);

fn parse_top_k(s: &str) -> Result<TopK, String> {
    match s.parse() {
        _ if s == "all" => Ok(TopK(None)),
        Ok(0) | Err(_) => Err("expected a whole number above 0, or all".into()),
        Ok(k) => Ok(TopK(Some(k))),
    }
}

impl TextFlags {
    /// How the predictions of a base are kept, in `usual` unless the flag names another folder.
    pub(super) fn base(&self, usual: Option<PathBuf>) -> Result<BasePlan> {
        let folder = self.base_logits.clone().or(usual).ok_or_else(|| {
            Error::Usage("there is no cache folder for the base: give --base-logits DIR".into())
        })?;
        if folder.exists() && !folder.is_dir() {
            return Err(Error::Usage(format!(
                "--base-logits {} is a file, not a folder",
                folder.display()
            )));
        }
        Ok(BasePlan {
            folder,
            top_k: self.base_top_k.map_or(Some(TOP_K), |k| k.0),
        })
    }

    /// Refuses the flags of a base where there is none, because of `why`.
    pub(super) fn without_base(&self, why: &str) -> Result<()> {
        match self.given_of_base() {
            Some(flag) => Err(Error::Usage(format!("{flag} is for a comparison: {why}"))),
            None => Ok(()),
        }
    }

    fn given_of_base(&self) -> Option<&'static str> {
        first_given(&[
            (self.base_logits.is_some(), "--base-logits"),
            (self.base_top_k.is_some(), "--base-top-k"),
        ])
    }

    /// A flag of these that was given, which is in vain where no text is scored.
    pub(super) fn given(&self) -> Option<&'static str> {
        let given = [
            (self.text.is_some(), "--text"),
            (self.text_format.is_some(), "--text-format"),
            (self.field.is_some(), "--field"),
            (self.protocol.is_some(), "--protocol"),
            (self.stride.is_some(), "--stride"),
        ];
        first_given(&given).or_else(|| self.given_of_base())
    }

    /// The protocol by which `models` are scored, with `context` tokens or as many as is usual and all of them take; and a
    /// word on that, where they take fewer than is usual.
    pub(super) fn protocol<'a>(
        &self,
        context: Option<usize>,
        segments: Option<usize>,
        models: impl IntoIterator<Item = &'a Model>,
    ) -> (Protocol, Option<String>) {
        let rule = self.protocol.unwrap_or(Rule::Gptq);
        let (context, note) = match context {
            Some(context) => (context, None),
            None => usual_context(rule, models),
        };
        let protocol = Protocol {
            rule,
            context,
            stride: self.stride,
            segments,
        };
        (protocol, note)
    }

    /// What is scored by this protocol.
    pub(super) fn plan(&self, protocol: Protocol) -> Result<QualityPlan> {
        protocol.check()?;
        Ok(QualityPlan {
            text: self.text.clone(),
            format: self.text_format.unwrap_or(FormatFlag::Auto).format(),
            field: self.field.clone(),
            protocol,
            base: None,
            under_load: false,
        })
    }
}
