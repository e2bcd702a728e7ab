//! One task, ready to run: its documents as tokens, and what the model has said so far.

use rayon::prelude::*;

use super::document::{Document, Documents, Limit};
use super::encode::{Encoded, Encoder};
use super::metric::Output;
use super::results::{Answer, Sample, SuiteScore, TaskScore};
use super::suite::Suite;
use super::task::Task;
use super::{generate, score};
use crate::engine::{Engine, Limits};
use crate::error::{Error, Result};
use crate::model::Tokenizer;

/// A task with its documents.
#[derive(Debug, Clone)]
pub struct Work {
    /// The task.
    pub task: Task,
    /// Examples before each document.
    pub shots: usize,
    /// What is asked.
    pub documents: Vec<Document>,
    /// Documents of the split.
    pub of: usize,
    /// Requests that lost their beginning, since they were too long.
    pub truncated: usize,
    tokens: Tokens,
    answers: Vec<Option<Answer>>,
}

#[derive(Debug, Clone)]
enum Tokens {
    /// The requests of each document.
    Scored(Vec<Vec<Encoded>>),
    /// The prompt of each document.
    Prompts(Vec<Vec<u32>>),
}

impl Work {
    /// Reads the data of a task and makes tokens of it; `shots` and `limit` are what is wished for.
    ///
    /// # Errors
    /// As [`Documents::prepare`]; also if a request cannot be tokenised or leaves nothing to score.
    pub fn prepare(
        task: &Task,
        shots: Option<usize>,
        limit: Option<Limit>,
        encoder: &Encoder<'_>,
    ) -> Result<Self> {
        let shots = task.shots(shots);
        let Documents { documents, of } = Documents::prepare(task, shots, limit)?;
        let mut truncated = 0;
        let tokens = match task.output {
            Output::Choices | Output::LogLikelihood => {
                let encoded = documents.par_iter().map(|d| encoder.document(task, d));
                let encoded: Vec<Vec<Encoded>> = encoded.collect::<Result<_>>()?;
                truncated += encoded
                    .iter()
                    .flatten()
                    .filter(|request| request.cut > 0)
                    .count();
                Tokens::Scored(encoded)
            }
            Output::Generated => {
                let prompts = documents.iter().map(|document| {
                    let prompt = encoder.prompt(&document.requests[0], task.generation.tokens);
                    let (ids, cut) = prompt.map_err(|error| match error {
                        Error::Config(what) => task.fault(document.id, what),
                        other => other,
                    })?;
                    truncated += usize::from(cut > 0);
                    Ok(ids)
                });
                Tokens::Prompts(prompts.collect::<Result<_>>()?)
            }
        };
        Ok(Self {
            task: task.clone(),
            shots,
            answers: vec![None; documents.len()],
            documents,
            of,
            truncated,
            tokens,
        })
    }

    /// A hash of everything that is asked, in tokens.
    pub fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        let mut add = |ids: &[u32]| {
            hasher.update(&(ids.len() as u64).to_le_bytes());
            for id in ids {
                hasher.update(&id.to_le_bytes());
            }
        };
        match &self.tokens {
            Tokens::Scored(documents) => documents.iter().flatten().for_each(|request| {
                add(&request.input);
                add(&request.targets);
            }),
            Tokens::Prompts(prompts) => prompts.iter().for_each(|prompt| add(prompt)),
        }
        hasher.finalize().to_hex().to_string()
    }

    /// Takes over what a document was answered before; whether that fits it.
    pub fn recall(&mut self, document: usize, answer: Answer) -> bool {
        let fits = match (&self.tokens, &answer) {
            (Tokens::Scored(requests), Answer::LogLikelihoods(found)) => requests
                .get(document)
                .is_some_and(|requests| requests.len() == found.len()),
            (Tokens::Prompts(prompts), Answer::Text(_)) => document < prompts.len(),
            _ => false,
        };
        if fits {
            self.answers[document] = Some(answer);
        }
        fits
    }

    /// The documents that have no answer yet.
    pub fn open(&self) -> usize {
        self.answers
            .iter()
            .filter(|answer| answer.is_none())
            .count()
    }

    /// Tokens of the documents that have no answer yet, as a measure of the time that they take.
    pub fn open_tokens(&self) -> usize {
        let open = self
            .answers
            .iter()
            .enumerate()
            .filter(|(_, answer)| answer.is_none());
        open.map(|(i, _)| self.tokens_of(i)).sum()
    }

    fn tokens_of(&self, document: usize) -> usize {
        match &self.tokens {
            // The first request reads the context, the others their own ends.
            Tokens::Scored(requests) => {
                let own: usize = requests[document].iter().map(|r| r.targets.len()).sum();
                own + requests[document].first().map_or(0, |r| r.input.len())
            }
            Tokens::Prompts(prompts) => prompts[document].len() + self.task.generation.tokens,
        }
    }

    /// What the engine must hold, if it reads `chunk` tokens at a time.
    pub fn limits(&self, chunk: usize) -> Limits {
        match &self.tokens {
            Tokens::Scored(requests) => score::limits(requests.iter().map(Vec::as_slice), chunk),
            Tokens::Prompts(prompts) => {
                generate::limits(prompts, self.task.generation.tokens, chunk)
            }
        }
    }

    /// The same task with its first documents alone and unanswered, at least two, and so many that the model reads `tokens`
    /// if it has them.
    pub fn sample(&self, tokens: usize) -> Self {
        let mut read = 0;
        let wanted = (0..self.documents.len()).take_while(|&document| {
            let wanted = document < 2 || read < tokens;
            read += self.tokens_of(document);
            wanted
        });
        let count = wanted.count();
        Self {
            task: self.task.clone(),
            shots: self.shots,
            documents: self.documents[..count].to_vec(),
            of: self.of,
            truncated: 0,
            tokens: match &self.tokens {
                Tokens::Scored(requests) => Tokens::Scored(requests[..count].to_vec()),
                Tokens::Prompts(prompts) => Tokens::Prompts(prompts[..count].to_vec()),
            },
            answers: vec![None; count],
        }
    }

    /// Asks the model about every document without an answer. `done` is told of each, with its tokens, and may stop the
    /// work; what was answered until then is kept.
    ///
    /// # Errors
    /// If the model fails, or `done` does.
    pub fn run(
        &mut self,
        engine: &mut Engine,
        tokenizer: &Tokenizer,
        mut done: impl FnMut(&Document, &Answer, usize) -> Result<()>,
    ) -> Result<()> {
        let open: Vec<usize> = (0..self.documents.len())
            .filter(|&i| self.answers[i].is_none())
            .collect();
        let sizes: Vec<usize> = open.iter().map(|&i| self.tokens_of(i)).collect();
        let (documents, answers) = (&self.documents, &mut self.answers);
        let mut take = |place: usize, answer: Answer| {
            let document = open[place];
            done(&documents[document], &answer, sizes[place])?;
            answers[document] = Some(answer);
            Ok(())
        };
        match &self.tokens {
            Tokens::Scored(requests) => {
                let requests: Vec<Vec<Encoded>> =
                    open.iter().map(|&i| requests[i].clone()).collect();
                score::score(engine, &requests, |place, found| {
                    take(place, Answer::LogLikelihoods(found))
                })
            }
            Tokens::Prompts(prompts) => {
                let prompts: Vec<Vec<u32>> = open.iter().map(|&i| prompts[i].clone()).collect();
                let generation = &self.task.generation;
                generate::generate(engine, tokenizer, &prompts, generation, |place, text| {
                    take(place, Answer::Text(text))
                })
            }
        }
    }

    /// The figures, once every document is answered.
    ///
    /// # Errors
    /// [`Error::Internal`] if one is not.
    pub fn score(&self) -> Result<TaskScore> {
        let samples = self
            .documents
            .iter()
            .zip(&self.answers)
            .map(|(document, answer)| {
                let answer = answer.clone().ok_or_else(|| {
                    Error::Internal(format!(
                        "document {} of {} has no answer",
                        document.id, self.task.name
                    ))
                })?;
                Ok(Sample::new(&self.task, document, answer))
            });
        let samples = samples.collect::<Result<_>>()?;
        Ok(TaskScore::new(
            self.task.clone(),
            self.shots,
            self.of,
            self.truncated,
            samples,
        ))
    }

    /// The figures of a whole suite.
    ///
    /// # Errors
    /// [`Error::Internal`] if a document has no answer.
    pub fn finish(suite: &Suite, works: &[Self]) -> Result<SuiteScore> {
        let tasks = works.iter().map(Self::score).collect::<Result<_>>()?;
        Ok(SuiteScore::new(suite, tasks))
    }
}
