//! The canonical packed weight on the host: codes and scales per group in the order of the file's rows, and what the
//! codes stand for.

mod codes;
mod form;
mod scales;
mod stack;

use codes::is_e4m3_nan;
pub use codes::{BLOCK, CodeFormat};
pub use form::{LevelForm, PackedForm};
pub use scales::Scales;

/// What the codes of a group stand for. `s` is the group's scale and `v` the number that a code names
/// ([`CodeFormat::value`]).
#[derive(Debug, Clone, PartialEq)]
pub enum Levels {
    /// `w = s * (v - m)` with the format's own middle `m`: 8 for [`CodeFormat::U4`], 0 for the others.
    Symmetric,
    /// `w = s * (v - z)`. One zero point per scale, in the layout of the scales: the code, in the format of the weight
    /// and one a byte, that stands for 0. Only for [`CodeFormat::U4`] (`0 ..= 15`) and [`CodeFormat::I8`].
    Zeros(Vec<u8>),
    /// `w = s * v + b`, rounded to f32 after the product and after the sum. One `b` per scale, in the layout of the
    /// scales. Only for [`CodeFormat::U4`].
    Offsets(Scales),
    /// `w = s * book[v]`, as in NF4. Only for [`CodeFormat::U4`].
    Codebook([f32; 16]),
}

impl Levels {
    /// The name used in messages.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Symmetric => "symmetric levels",
            Self::Zeros(_) => "zero points",
            Self::Offsets(_) => "float offsets",
            Self::Codebook(_) => "a codebook",
        }
    }

    /// Bytes that they take beside codes and scales.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Symmetric => 0,
            Self::Zeros(zeros) => zeros.len(),
            Self::Offsets(offsets) => offsets.bytes(),
            Self::Codebook(book) => size_of_val(book),
        }
    }
}

/// A quantised matrix `[n, k]`.
///
/// Codes, scales and levels count columns in the order of the codes. Without `order` that is the order of the input;
/// with it, column `j` of the codes belongs to number `order[j]` of the input.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedWeight {
    /// Output features (rows).
    pub n: usize,
    /// Input features (columns).
    pub k: usize,
    /// How codes are written.
    pub format: CodeFormat,
    /// Columns that share a scale: `k` for one scale per row (per channel), else a multiple of 32. The last group of a
    /// row may be shorter.
    pub group: usize,
    /// Rows that share their scales: 1, or 128 where scales cover blocks of 128 by 128, or `n` where the whole tensor
    /// has one. The last such rows may be fewer.
    pub scale_rows: usize,
    /// `[n, row_bytes(k)]`, rows one after another.
    pub codes: Vec<u8>,
    /// `[n / scale_rows, k / group]`, both rounded up.
    pub scales: Scales,
    /// What the codes stand for.
    pub levels: Levels,
    /// `[k]`, each column once: the input of each column of the codes, where groups were made of columns that do not
    /// stand side by side (GPTQ with activation order).
    pub order: Option<Vec<u32>>,
}

impl PackedWeight {
    /// Groups of a row.
    pub const fn groups(&self) -> usize {
        self.k.div_ceil(self.group)
    }

    /// Where the scale, and what goes with it, of a row and a column of the codes stands.
    pub const fn scale_index(&self, row: usize, column: usize) -> usize {
        row / self.scale_rows * self.groups() + column / self.group
    }

    /// Checks that the parts fit together and that every number is one.
    ///
    /// # Errors
    /// Names the part that does not fit, and where in it, for a caller who knows the file.
    pub fn check(&self) -> Result<(), String> {
        let shape = format!("packed weight [{}, {}]", self.n, self.k);
        let fault = self
            .fault_of_shape()
            .or_else(|| self.fault_of_levels())
            .or_else(|| self.fault_of_numbers())
            .or_else(|| self.fault_of_order());
        fault.map_or(Ok(()), |what| Err(format!("{shape}: {what}")))
    }

    fn fault_of_shape(&self) -> Option<String> {
        let Self { n, k, group, .. } = *self;
        let format = self.format.name();
        if group == 0 || group > k || (group != k && !group.is_multiple_of(BLOCK)) {
            return Some(format!(
                "groups of {group} columns: expected all of them, or a multiple of {BLOCK}"
            ));
        }
        if self.format == CodeFormat::U4 && !k.is_multiple_of(BLOCK) {
            return Some(format!(
                "K = {k} of {format} codes is not a multiple of {BLOCK}"
            ));
        }
        if self.scale_rows == 0 || self.scale_rows > n.max(1) {
            return Some(format!("{} rows share a scale", self.scale_rows));
        }
        let count = |what: &str, found: usize, rows: usize, each: usize| {
            let wanted = rows.checked_mul(each);
            (wanted != Some(found))
                .then(|| format!("{found} {what} where {rows} rows of {each} are needed"))
        };
        let scale_rows = n.div_ceil(self.scale_rows);
        count(
            "bytes of codes",
            self.codes.len(),
            n,
            self.format.row_bytes(k),
        )
        .or_else(|| count("scales", self.scales.len(), scale_rows, self.groups()))
        .or_else(|| match &self.levels {
            Levels::Zeros(zeros) => count("zero points", zeros.len(), scale_rows, self.groups()),
            Levels::Offsets(offsets) => count("offsets", offsets.len(), scale_rows, self.groups()),
            Levels::Symmetric | Levels::Codebook(_) => None,
        })
    }

    fn fault_of_levels(&self) -> Option<String> {
        let fits = match &self.levels {
            Levels::Symmetric => true,
            Levels::Zeros(_) => self.format != CodeFormat::E4M3,
            Levels::Offsets(_) | Levels::Codebook(_) => self.format == CodeFormat::U4,
        };
        (!fits).then(|| {
            let (format, levels) = (self.format.name(), self.levels.name());
            format!("{format} codes cannot have {levels}")
        })
    }

    fn fault_of_numbers(&self) -> Option<String> {
        let place = |at: usize| {
            let (row, group) = (at / self.groups() * self.scale_rows, at % self.groups());
            format!("row {row}, group {group}")
        };
        if let Some(at) = self.scales.first_not_finite() {
            let scale = self.scales.get(at);
            return Some(format!("the scale of {} is {scale}", place(at)));
        }
        if self.format == CodeFormat::E4M3
            && let Some(at) = self.codes.iter().position(|&code| is_e4m3_nan(code))
        {
            let (row, column) = (at / self.k, at % self.k);
            return Some(format!(
                "the code of row {row}, column {column} is {:#04x}, which is NaN",
                self.codes[at]
            ));
        }
        match &self.levels {
            Levels::Zeros(zeros) if self.format == CodeFormat::U4 => {
                let at = zeros.iter().position(|&zero| zero > 15)?;
                Some(format!(
                    "the zero point of {} is {}: expected 0 to 15",
                    place(at),
                    zeros[at]
                ))
            }
            Levels::Offsets(offsets) => {
                let at = offsets.first_not_finite()?;
                let offset = offsets.get(at);
                Some(format!("the offset of {} is {offset}", place(at)))
            }
            Levels::Codebook(book) => {
                let at = book.iter().position(|level| !level.is_finite())?;
                Some(format!("level {at} of the codebook is {}", book[at]))
            }
            Levels::Symmetric | Levels::Zeros(_) => None,
        }
    }

    fn fault_of_order(&self) -> Option<String> {
        let order = self.order.as_ref()?;
        if order.len() != self.k {
            return Some(format!(
                "an order of {} columns where K is {}",
                order.len(),
                self.k
            ));
        }
        let mut seen = vec![false; self.k];
        for (column, &input) in order.iter().enumerate() {
            match seen.get_mut(input as usize) {
                None => {
                    return Some(format!(
                        "column {column} takes input {input}: K is {}",
                        self.k
                    ));
                }
                Some(true) => return Some(format!("column {column} takes input {input} again")),
                Some(seen) => *seen = true,
            }
        }
        None
    }

    /// Bytes of all parts.
    pub fn bytes(&self) -> usize {
        let order = self
            .order
            .as_ref()
            .map_or(0, |order| order.len() * size_of::<u32>());
        self.codes.len() + self.scales.bytes() + self.levels.bytes() + order
    }

    /// The codes of row `i` in their own order, one a byte, `[k]`.
    pub fn row_codes(&self, i: usize) -> Vec<u8> {
        let width = self.format.row_bytes(self.k);
        let mut codes = vec![0; self.k];
        self.format
            .unpack_row(&self.codes[i * width..][..width], &mut codes);
        codes
    }

    /// Row `i` in the order of the input, `[k]`; products and sums are f32, as [`Levels`] has them.
    pub fn dequantise_row(&self, i: usize) -> Vec<f32> {
        let mut row = vec![0.0; self.k];
        for (column, code) in self.row_codes(i).into_iter().enumerate() {
            let at = self
                .order
                .as_ref()
                .map_or(column, |order| order[column] as usize);
            row[at] = self.weight(code, self.scale_index(i, column));
        }
        row
    }

    /// What `code` stands for in the group whose scale is the `at`-th.
    fn weight(&self, code: u8, at: usize) -> f32 {
        let (scale, value) = (self.scales.get(at), |code| self.format.value(code));
        match &self.levels {
            Levels::Symmetric => (value(code) - value(self.format.middle())) * scale,
            Levels::Zeros(zeros) => (value(code) - value(zeros[at])) * scale,
            Levels::Offsets(offsets) => value(code) * scale + offsets.get(at),
            Levels::Codebook(book) => book[usize::from(code & 15)] * scale,
        }
    }
}

#[cfg(test)]
mod tests;
