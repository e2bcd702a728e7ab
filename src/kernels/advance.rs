//! What closes a step of decoding on the device: picked tokens become the next step's inputs and are told to the host.

use super::device::{Buf, Device};
use super::mailbox::Mailbox;
use super::{Cost, check_len};
use crate::error::{Error, Result};

/// The inputs of the next step, and how many steps there have been.
pub struct Feed<'a> {
    /// Tokens (u32), one per row.
    pub tokens: &'a mut Buf,
    /// Positions (u32) of these tokens in their slots.
    pub positions: &'a mut Buf,
    /// Steps so far (u32), a single number; it names the line of the mailbox and the tag of its words.
    pub steps: &'a mut Buf,
}

/// `tokens[first + r] = picked[r]`, `positions[first + r] += 1`, and a word for each row in the host's mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Advance {
    /// The first row of the batch that it closes.
    pub first: usize,
    /// How many it closes.
    pub rows: usize,
    /// Rows of the whole batch: words of a line of the mailbox.
    pub width: usize,
    /// Whether the step is over: false where other rows are still to come.
    pub ends: bool,
}

impl Advance {
    /// A whole batch at once.
    pub const fn whole(rows: usize) -> Self {
        Self {
            first: 0,
            rows,
            width: rows,
            ends: true,
        }
    }

    /// Traffic.
    pub fn cost(&self) -> Cost {
        Cost {
            read: 8.0 * self.rows as f64,
            written: 16.0 * self.rows as f64,
            flops: 0.0,
        }
    }

    /// Takes over `picked [rows]` (u32). Lines of `mailbox` are used in turn, as many as it has whole ones of `width`.
    ///
    /// # Errors
    /// If a buffer is too short or of another type.
    pub fn run(
        &self,
        device: &Device,
        picked: &Buf,
        feed: Feed<'_>,
        mailbox: &Mailbox,
    ) -> Result<()> {
        check_len("picked", picked, self.rows)?;
        check_len("tokens", feed.tokens, self.first + self.rows)?;
        check_len("positions", feed.positions, self.first + self.rows)?;
        check_len("steps", feed.steps, 1)?;
        let lines = mailbox.lines(self.width);
        if lines == 0 || self.first + self.rows > self.width {
            return Err(Error::Internal(format!(
                "a mailbox of {} words for {self:?}",
                mailbox.words().len()
            )));
        }
        match device {
            Device::Cpu => self.reference(picked, feed, mailbox, lines),
            Device::Gpu(gpu) => super::gpu::advance(gpu, self, picked, feed, mailbox, lines),
        }
    }

    fn reference(
        &self,
        picked: &Buf,
        feed: Feed<'_>,
        mailbox: &Mailbox,
        lines: usize,
    ) -> Result<()> {
        let picked = &picked.host::<u32>()?[..self.rows];
        let steps = &mut feed.steps.host_mut::<u32>()?[0];
        let step = *steps;
        let rows = self.first..self.first + self.rows;
        feed.tokens.host_mut::<u32>()?[rows.clone()].copy_from_slice(picked);
        for position in &mut feed.positions.host_mut::<u32>()?[rows.clone()] {
            *position = position.wrapping_add(1);
        }
        for (row, &token) in rows.zip(picked) {
            mailbox.write(step as usize % lines * self.width + row, step, token);
        }
        if self.ends {
            *steps = step.wrapping_add(1);
        }
        Ok(())
    }
}
