//! Texts that a model goes on with, greedily, until one of several texts comes up.

use super::task::Generation;
use crate::engine::{Engine, Limits, Prompt};
use crate::error::Result;
use crate::model::Tokenizer;

/// Positions of the cache that are held at once, where a prompt leaves the choice.
const POSITIONS: usize = 16_384;
/// The most sequences side by side.
const SLOTS: usize = 32;

/// What generating up to `tokens` tokens after each prompt asks of an engine that reads `chunk` tokens at a time.
pub(super) fn limits(prompts: &[Vec<u32>], tokens: usize, chunk: usize) -> Limits {
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0) + tokens;
    let slots = (POSITIONS / longest.max(1))
        .clamp(1, SLOTS)
        .min(prompts.len().max(1));
    Limits::new(slots, longest, chunk)
}

/// One sequence of the cache.
#[derive(Default)]
struct Slot {
    /// The prompt at work, and what was made of it so far.
    prompt: Option<usize>,
    made: Vec<u32>,
    /// The tokens that the cache holds.
    held: Vec<u32>,
}

/// Goes on from every prompt; `done` takes each text, in any order, and may stop the work. A text ends before the first of
/// the texts that stop it, or with the model's own end. A slot that is free takes the next prompt at once and keeps what it
/// shares with the one before.
///
/// # Errors
/// If the model fails, or `done` does.
pub(super) fn generate(
    engine: &mut Engine,
    tokenizer: &Tokenizer,
    prompts: &[Vec<u32>],
    generation: &Generation,
    mut done: impl FnMut(usize, String) -> Result<()>,
) -> Result<()> {
    let mut order: Vec<usize> = (0..prompts.len()).collect();
    order.sort_by(|&a, &b| prompts[a].cmp(&prompts[b]));
    let mut waiting = order.into_iter();
    let mut slots: Vec<Slot> = Vec::new();
    slots.resize_with(engine.limits().slots, Slot::default);
    loop {
        for slot in slots.iter_mut().filter(|slot| slot.prompt.is_none()) {
            slot.prompt = waiting.next();
            slot.made.clear();
        }
        let mut work: Vec<(usize, usize, Vec<u32>)> = Vec::new();
        for (number, slot) in slots.iter_mut().enumerate() {
            let Some(prompt) = slot.prompt else { continue };
            let (start, tokens) = match slot.made.last() {
                Some(&last) => (slot.held.len(), vec![last]),
                None => {
                    let prompt = &prompts[prompt];
                    let common = slot.held.iter().zip(prompt).take_while(|(a, b)| a == b);
                    // The last token is read again, for what follows it.
                    let start = common.count().min(prompt.len() - 1);
                    slot.held.truncate(start);
                    (start, prompt[start..].to_vec())
                }
            };
            slot.held.extend(&tokens);
            work.push((number, start, tokens));
        }
        if work.is_empty() {
            return Ok(());
        }
        let next = step(engine, &work)?;
        for ((number, ..), token) in work.into_iter().zip(next) {
            let slot = &mut slots[number];
            let Some(prompt) = slot.prompt else { continue };
            let ended = tokenizer.eos().contains(&token);
            if !ended {
                slot.made.push(token);
            }
            let text = tokenizer.decode_plain(&slot.made)?;
            let stopped = generation
                .until
                .iter()
                .any(|stop| !stop.is_empty() && text.contains(stop));
            if ended || stopped || slot.made.len() >= generation.tokens {
                slot.prompt = None;
                done(prompt, before(&text, &generation.until).to_owned())?;
            }
        }
    }
}

/// One step of all slots at work; by what an engine recorded of it, where it is one token of every slot.
fn step(engine: &mut Engine, work: &[(usize, usize, Vec<u32>)]) -> Result<Vec<u32>> {
    let single = work
        .iter()
        .enumerate()
        .all(|(i, (slot, _, tokens))| *slot == i && tokens.len() == 1);
    if single {
        let tokens: Vec<u32> = work.iter().map(|(.., tokens)| tokens[0]).collect();
        let positions: Vec<usize> = work.iter().map(|(_, start, _)| *start).collect();
        return engine.decode(&tokens, &positions);
    }
    let prompts: Vec<Prompt<'_>> = work
        .iter()
        .map(|(slot, start, tokens)| Prompt {
            slot: *slot,
            start: *start,
            tokens,
        })
        .collect();
    engine.prefill(&prompts)
}

/// What stands before the first of the texts that stop, each in its turn.
fn before<'a>(text: &'a str, until: &[String]) -> &'a str {
    let stops = until.iter().filter(|stop| !stop.is_empty());
    stops.fold(text, |text, stop| {
        text.split(stop.as_str()).next().unwrap_or(text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_ends_before_whatever_stops_it() {
        let until = ["Q:".to_owned(), String::new(), "\n".to_owned()];
        assert_eq!(before("a b\nQ: c", &until), "a b");
        assert_eq!(before("a b", &until), "a b");
    }
}
