//! Several packed weights as one, for layers that share an input.

use super::{Levels, PackedWeight, Scales};

impl PackedWeight {
    /// `parts` one below the other; each must be one that [`PackedWeight::check`] passes. Where the rows that share
    /// scales do not line up, as in three tensors with one scale each, scales are repeated as often as that needs.
    ///
    /// # Errors
    /// Says in what the parts differ.
    ///
    /// # Panics
    /// If there are no parts.
    pub fn stack(parts: Vec<Self>) -> Result<Self, String> {
        let (last, above) = parts.split_last().expect("at least one part");
        for part in above {
            if let Some(what) = part.difference(last) {
                return Err(format!(
                    "packed weights [{}, {}] and [{}, {}] differ in {what}",
                    part.n, part.k, last.n, last.k
                ));
            }
        }
        let scale_rows = parts.iter().map(|part| part.scale_rows);
        let scale_rows = above
            .iter()
            .map(|part| part.n)
            .chain(scale_rows)
            .fold(0, gcd);
        let bytes: usize = parts.iter().map(|part| part.codes.len()).sum();
        let mut parts = parts.into_iter().map(|part| part.shared_by(scale_rows));
        let mut stacked = parts.next().expect("at least one part");
        // The CPU keeps this very memory: no more than is needed.
        stacked.codes.reserve_exact(bytes - stacked.codes.len());
        for part in parts {
            stacked.n += part.n;
            stacked.codes.extend(part.codes);
            stacked.scales.append(part.scales);
            match (&mut stacked.levels, part.levels) {
                (Levels::Zeros(all), Levels::Zeros(zeros)) => all.extend(zeros),
                (Levels::Offsets(all), Levels::Offsets(offsets)) => all.append(offsets),
                _ => {}
            }
        }
        Ok(stacked)
    }

    /// Whether the two can be one, one below the other.
    pub fn stacks_with(&self, other: &Self) -> bool {
        self.difference(other).is_none()
    }

    /// What keeps two weights from being one.
    fn difference(&self, other: &Self) -> Option<&'static str> {
        let levels = match (&self.levels, &other.levels) {
            (Levels::Symmetric, Levels::Symmetric) | (Levels::Zeros(_), Levels::Zeros(_)) => true,
            (Levels::Offsets(a), Levels::Offsets(b)) => a.dtype() == b.dtype(),
            (Levels::Codebook(a), Levels::Codebook(b)) => a == b,
            _ => false,
        };
        [
            (self.k == other.k, "K"),
            (self.format == other.format, "the format of their codes"),
            (self.group == other.group, "their groups"),
            (
                self.scales.dtype() == other.scales.dtype(),
                "the type of their scales",
            ),
            (levels, "what their codes stand for"),
            (self.order == other.order, "their activation order"),
        ]
        .into_iter()
        .find_map(|(same, what)| (!same).then_some(what))
    }

    /// The same weight with scales for every `rows` rows, a divisor of `scale_rows`.
    fn shared_by(mut self, rows: usize) -> Self {
        if rows == self.scale_rows {
            return self;
        }
        let groups = self.groups();
        let from: Vec<usize> = (0..self.n.div_ceil(rows))
            .flat_map(|i| (0..groups).map(move |group| (i, group)))
            .map(|(i, group)| self.scale_index(i * rows, group * self.group))
            .collect();
        self.scales = self.scales.pick(&from);
        self.levels = match self.levels {
            Levels::Zeros(zeros) => Levels::Zeros(from.iter().map(|&i| zeros[i]).collect()),
            Levels::Offsets(offsets) => Levels::Offsets(offsets.pick(&from)),
            same => same,
        };
        self.scale_rows = rows;
        self
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Scales {
    /// The scales of these places, in this order.
    fn pick(&self, from: &[usize]) -> Self {
        match self {
            Self::F32(v) => Self::F32(from.iter().map(|&i| v[i]).collect()),
            Self::F16(v) => Self::F16(from.iter().map(|&i| v[i]).collect()),
            Self::BF16(v) => Self::BF16(from.iter().map(|&i| v[i]).collect()),
        }
    }

    /// Adds scales of the same type.
    fn append(&mut self, more: Self) {
        match (self, more) {
            (Self::F32(all), Self::F32(more)) => all.extend(more),
            (Self::F16(all), Self::F16(more)) => all.extend(more),
            (Self::BF16(all), Self::BF16(more)) => all.extend(more),
            _ => unreachable!("stacked scales are of one type"),
        }
    }
}
