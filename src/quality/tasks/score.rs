//! Log-likelihoods of many continuations.
//!
//! Every slot of the cache keeps what it holds, and the next request that comes to it is read from where it differs. So
//! the choices of a document share its context, and documents their description and examples, which is why they are
//! sorted by their tokens first. Requests of all slots make one ragged batch: nothing is padded, so lengths may differ.

use super::encode::Encoded;
use crate::engine::{Continuation, Engine, Limits, Prompt};
use crate::error::Result;

/// Positions of the cache that are held at once, where a request leaves the choice.
const POSITIONS: usize = 16_384;
/// The most sequences side by side: enough for a step of many tokens where a choice is short.
const SLOTS: usize = 32;

/// A scored continuation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogLikelihood {
    /// The sum of the log-probabilities of its tokens, in nats.
    pub sum: f64,
    /// Whether greedy decoding gives it.
    pub greedy: bool,
}

/// What scoring `documents` asks of an engine that reads `chunk` tokens at a time.
pub(super) fn limits<'a>(
    documents: impl IntoIterator<Item = &'a [Encoded]>,
    chunk: usize,
) -> Limits {
    let mut count = 0;
    let mut longest = 1;
    for document in documents {
        count += 1;
        longest = document
            .iter()
            .map(|r| r.input.len())
            .fold(longest, usize::max);
    }
    let slots = (POSITIONS / longest).clamp(1, SLOTS).min(count.max(1));
    Limits::new(slots, longest, chunk)
}

/// One sequence of the cache and the documents that are scored in it, one after the other.
struct Slot {
    held: Vec<u32>,
    queue: std::vec::IntoIter<usize>,
    document: Option<usize>,
    scores: Vec<LogLikelihood>,
}

/// Scores all requests of all documents; `done` takes what comes of each document, in any order, and may stop the work.
///
/// # Errors
/// If the model fails, or `done` does.
pub(super) fn score(
    engine: &mut Engine,
    documents: &[Vec<Encoded>],
    mut done: impl FnMut(usize, Vec<LogLikelihood>) -> Result<()>,
) -> Result<()> {
    let mut slots = deal(documents, engine.limits().slots);
    loop {
        for slot in &mut slots {
            if slot.document.is_none() {
                slot.document = slot.queue.next();
            }
        }
        let work: Vec<(usize, &Encoded, usize)> = slots
            .iter()
            .enumerate()
            .filter_map(|(number, slot)| {
                let request = &documents[slot.document?][slot.scores.len()];
                Some((number, request, start(&slot.held, request)))
            })
            .collect();
        if work.is_empty() {
            return Ok(());
        }
        let batch: Vec<Continuation<'_>> = work
            .iter()
            .map(|(slot, request, start)| Continuation {
                prompt: Prompt {
                    slot: *slot,
                    start: *start,
                    tokens: &request.input[*start..],
                },
                targets: &request.targets,
            })
            .collect();
        let found = engine.continuations(&batch)?;
        for ((number, request, _), predicted) in work.into_iter().zip(found) {
            let slot = &mut slots[number];
            slot.held.clone_from(&request.input);
            slot.scores.push(LogLikelihood {
                sum: predicted.iter().map(|p| f64::from(p.log_prob)).sum(),
                greedy: predicted.iter().all(|p| p.greedy),
            });
            if let Some(document) = slot.document
                && slot.scores.len() == documents[document].len()
            {
                slot.document = None;
                done(document, std::mem::take(&mut slot.scores))?;
            }
        }
    }
}

/// Where reading begins: after what the slot holds already, but not after the first token whose follower is scored.
fn start(held: &[u32], request: &Encoded) -> usize {
    let common = held.iter().zip(&request.input).take_while(|(a, b)| a == b);
    common
        .count()
        .min(request.input.len() - request.targets.len())
}

/// Deals documents to slots: neighbours by their tokens to the same one, and as many tokens to each.
fn deal(documents: &[Vec<Encoded>], slots: usize) -> Vec<Slot> {
    let mut order: Vec<usize> = (0..documents.len())
        .filter(|&i| !documents[i].is_empty())
        .collect();
    order.sort_by(|&a, &b| documents[a][0].input.cmp(&documents[b][0].input));
    // What a document adds to the one before it.
    let mut held: &[u32] = &[];
    let mut costs = Vec::with_capacity(order.len());
    for &document in &order {
        let mut cost = 0;
        for request in &documents[document] {
            cost += request.input.len() - start(held, request);
            held = &request.input;
        }
        costs.push(cost);
    }
    let total: usize = costs.iter().sum();
    let mut queues = vec![Vec::new(); slots];
    let mut before = 0;
    for (document, cost) in order.into_iter().zip(costs) {
        // By the middle of the document, so that the last slot gets no more than its share.
        let place = (2 * before + cost) * slots / (2 * total.max(1));
        queues[place.min(slots - 1)].push(document);
        before += cost;
    }
    let slot = |queue: Vec<usize>| Slot {
        held: Vec::new(),
        queue: queue.into_iter(),
        document: None,
        scores: Vec::new(),
    };
    queues.into_iter().map(slot).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(input: &[u32], targets: &[u32]) -> Encoded {
        Encoded {
            input: input.to_vec(),
            targets: targets.to_vec(),
            cut: 0,
        }
    }

    #[test]
    fn what_a_slot_holds_is_not_read_again() {
        let request = encoded(&[1, 2, 3, 4, 5], &[5, 6]);
        assert_eq!(start(&[], &request), 0);
        assert_eq!(start(&[1, 2, 9], &request), 2);
        // The third token's follower is scored.
        assert_eq!(start(&[1, 2, 3, 4, 5], &request), 3);
    }

    #[test]
    fn every_document_is_dealt_once_and_neighbours_stay_together() {
        let documents: Vec<Vec<Encoded>> = (0..40_u32)
            .map(|i| vec![encoded(&[i % 4, 7, i], &[1]), encoded(&[i % 4, 8], &[2])])
            .collect();
        let slots = deal(&documents, 4);
        let mut all = Vec::new();
        for slot in slots {
            let queue: Vec<usize> = slot.queue.collect();
            assert_eq!(queue.len(), 10);
            let first: Vec<u32> = queue.iter().map(|&i| documents[i][0].input[0]).collect();
            assert!(first.windows(2).all(|pair| pair[0] == pair[1]), "{first:?}");
            all.extend(queue);
        }
        all.sort_unstable();
        assert_eq!(all, (0..40).collect::<Vec<_>>());
        assert_eq!(
            deal(&documents[..1], 3)
                .iter()
                .map(|s| s.queue.len())
                .sum::<usize>(),
            1
        );
    }
}
