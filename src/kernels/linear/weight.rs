//! A weight on a device.

use crate::error::{Error, Result};
use crate::kernels::device::HostElem;
use crate::kernels::gpu::{self, StreamedBufs};
use crate::kernels::silu_mul::GateUp;
use crate::kernels::{Buf, BufType, Device, check_len};
use crate::scheme::{CodeFormat, DType, Levels, PackedWeight, Scales};

/// A weight matrix `[n, k]` on a device, in the form that the kernels stream.
pub struct LinearWeight {
    /// Output features.
    pub n: usize,
    /// Input features.
    pub k: usize,
    /// The numbers.
    pub data: WeightData,
}

/// The numbers of a [`LinearWeight`].
pub enum WeightData {
    /// `[n, k]`, not quantised.
    Plain(Buf),
    /// Quantised.
    Packed(PackedBufs),
    /// Quantised, and repacked into what a GPU's kernels stream.
    Streamed(StreamedBufs),
    /// Matrices that share an input but not a form, one below the other; none of them is of this kind.
    Apart(Vec<LinearWeight>),
}

/// The parts of a [`PackedWeight`] on a device; each means what its namesake there does.
pub struct PackedBufs {
    /// How codes are written.
    pub format: CodeFormat,
    /// Columns per scale.
    pub group: usize,
    /// Rows per scale.
    pub scale_rows: usize,
    /// `[n, format.row_bytes(k)]` bytes.
    pub codes: Buf,
    /// `[n / scale_rows, k / group]`, both rounded up.
    pub scales: Buf,
    /// What the codes stand for.
    pub levels: LevelBufs,
    /// `[k]` u32: the input of each column of the codes, where that is not its own number.
    pub order: Option<Buf>,
}

/// [`Levels`] on a device.
pub enum LevelBufs {
    /// Nothing beside the scales.
    Symmetric,
    /// Bytes in the layout of the scales.
    Zeros(Buf),
    /// Floating-point numbers in the layout of the scales.
    Offsets(Buf),
    /// 16 f32.
    Codebook(Buf),
}

impl LinearWeight {
    /// A packed weight `[n, k]` with nothing in it yet: symmetric, with its own scales in every row.
    ///
    /// # Errors
    /// If the memory is not there.
    pub fn packed(
        device: &Device,
        [n, k]: [usize; 2],
        format: CodeFormat,
        group: usize,
        scales: DType,
    ) -> Result<Self> {
        let codes = device.alloc(BufType::U8, rows_held(device, n) * format.row_bytes(k))?;
        let scales = device.alloc(BufType::Float(scales), n * k.div_ceil(group))?;
        let data = WeightData::Packed(PackedBufs {
            format,
            group,
            scale_rows: 1,
            codes,
            scales,
            levels: LevelBufs::Symmetric,
            order: None,
        });
        Ok(Self { n, k, data })
    }

    /// A plain weight `[n, k]` with nothing in it yet.
    ///
    /// # Errors
    /// If the memory is not there.
    pub fn plain(device: &Device, [n, k]: [usize; 2], dtype: DType) -> Result<Self> {
        let data =
            WeightData::Plain(device.alloc(BufType::Float(dtype), rows_held(device, n) * k)?);
        Ok(Self { n, k, data })
    }

    /// The same weight in memory of its own.
    ///
    /// # Errors
    /// If the memory is not there.
    pub fn duplicate(&self, device: &Device) -> Result<Self> {
        let maybe = |buf: &Option<Buf>| buf.as_ref().map(|buf| device.duplicate(buf)).transpose();
        let data = match &self.data {
            WeightData::Plain(numbers) => WeightData::Plain(device.duplicate(numbers)?),
            WeightData::Packed(packed) => WeightData::Packed(PackedBufs {
                format: packed.format,
                group: packed.group,
                scale_rows: packed.scale_rows,
                codes: device.duplicate(&packed.codes)?,
                scales: device.duplicate(&packed.scales)?,
                levels: match &packed.levels {
                    LevelBufs::Symmetric => LevelBufs::Symmetric,
                    LevelBufs::Zeros(zeros) => LevelBufs::Zeros(device.duplicate(zeros)?),
                    LevelBufs::Offsets(offsets) => LevelBufs::Offsets(device.duplicate(offsets)?),
                    LevelBufs::Codebook(values) => LevelBufs::Codebook(device.duplicate(values)?),
                },
                order: maybe(&packed.order)?,
            }),
            WeightData::Streamed(streamed) => WeightData::Streamed(StreamedBufs {
                form: streamed.form,
                codes: device.duplicate(&streamed.codes)?,
                scales: device.duplicate(&streamed.scales)?,
                zeros: maybe(&streamed.zeros)?,
                group: streamed.group,
                order: maybe(&streamed.order)?,
            }),
            WeightData::Apart(parts) => {
                let parts = parts.iter().map(|part| part.duplicate(device));
                WeightData::Apart(parts.collect::<Result<_>>()?)
            }
        };
        Ok(Self { data, ..*self })
    }

    /// `parts`, which share an input, one below the other.
    ///
    /// # Errors
    /// If they are none, or have different widths.
    pub fn apart(parts: Vec<Self>) -> Result<Self> {
        let n = parts.iter().map(|part| part.n).sum();
        let Some(k) = parts.first().map(|part| part.k) else {
            return Err(Error::Internal("a matrix of no parts".into()));
        };
        let nested = |part: &Self| matches!(part.data, WeightData::Apart(_));
        if parts.iter().any(|part| part.k != k || nested(part)) {
            return Err(Error::Internal("parts that cannot be one matrix".into()));
        }
        let data = WeightData::Apart(parts);
        Ok(Self { n, k, data })
    }

    /// Repacks the weight into the order in which a GPU's kernels stream it for inputs of type `act`, or for codes. On the
    /// CPU, and where only the kernels for any shape take it, it stays as it is.
    ///
    /// # Errors
    /// If the GPU has no kernel for it at all, or no room.
    pub fn streamed(self, device: &Device, act: DType) -> Result<Self> {
        match device {
            Device::Cpu => Ok(self),
            Device::Gpu(gpu) => gpu::streamed(device, gpu, self, act),
        }
    }

    /// A weight `[gate; up]` with its bias, its rows in the order in which a GPU's products find both factors in one tile;
    /// it comes before [`LinearWeight::streamed`]. On the CPU, and where there are not so many eights, rows stay as they
    /// are.
    ///
    /// # Errors
    /// If memory is short, or the weight is streamed already.
    pub fn paired(self, device: &Device, bias: Option<Buf>) -> Result<(Self, Option<Buf>, GateUp)> {
        match device {
            Device::Cpu => Ok((self, bias, GateUp::Halves)),
            Device::Gpu(gpu) => gpu::paired(device, gpu, self, bias),
        }
    }

    /// Brings `weight` to `device`. The CPU keeps the very parts; nothing is copied.
    ///
    /// # Errors
    /// If the parts do not fit together ([`PackedWeight::check`]), or the device has no room.
    pub fn from_packed(device: &Device, weight: PackedWeight) -> Result<Self> {
        weight.check().map_err(Error::Internal)?;
        let levels = match weight.levels {
            Levels::Symmetric => LevelBufs::Symmetric,
            Levels::Zeros(zeros) => LevelBufs::Zeros(put(device, zeros)?),
            Levels::Offsets(offsets) => LevelBufs::Offsets(put_scales(device, offsets)?),
            Levels::Codebook(book) => LevelBufs::Codebook(put(device, book.to_vec())?),
        };
        let data = WeightData::Packed(PackedBufs {
            format: weight.format,
            group: weight.group,
            scale_rows: weight.scale_rows,
            codes: put(device, weight.codes)?,
            scales: put_scales(device, weight.scales)?,
            levels,
            order: weight.order.map(|order| put(device, order)).transpose()?,
        });
        let (n, k) = (weight.n, weight.k);
        Ok(Self { n, k, data })
    }

    /// Bytes on the device, scales and all else included.
    pub fn bytes(&self) -> usize {
        match &self.data {
            WeightData::Plain(w) => self.n * self.k * w.kind().size(),
            WeightData::Streamed(bufs) => bufs.bytes(),
            WeightData::Apart(parts) => parts.iter().map(Self::bytes).sum(),
            WeightData::Packed(packed) => {
                let levels = packed.levels.buf().map_or(0, Buf::bytes);
                let order = packed.order.as_ref().map_or(0, Buf::bytes);
                packed.codes.bytes() + packed.scales.bytes() + levels + order
            }
        }
    }

    /// Columns per scale, where it is quantised as a whole.
    pub fn group(&self) -> Option<usize> {
        match &self.data {
            WeightData::Plain(_) | WeightData::Apart(_) => None,
            WeightData::Packed(packed) => Some(packed.group),
            WeightData::Streamed(bufs) => Some(bufs.group()),
        }
    }
}

impl PackedBufs {
    /// Refuses buffers that are shorter than a weight `[n, k]` needs.
    pub(super) fn check(&self, n: usize, k: usize) -> Result<()> {
        if self.group == 0 || self.scale_rows == 0 {
            return Err(Error::Internal("a packed weight without groups".into()));
        }
        let scales = n.div_ceil(self.scale_rows) * k.div_ceil(self.group);
        check_len("codes", &self.codes, n * self.format.row_bytes(k))?;
        check_len("scales", &self.scales, scales)?;
        match &self.levels {
            LevelBufs::Symmetric => {}
            LevelBufs::Zeros(zeros) => check_len("zero points", zeros, scales)?,
            LevelBufs::Offsets(offsets) => check_len("offsets", offsets, scales)?,
            LevelBufs::Codebook(book) => check_len("codebook", book, 16)?,
        }
        self.order
            .as_ref()
            .map_or(Ok(()), |order| check_len("activation order", order, k))
    }

    /// Refuses a weight that is more than symmetric integer codes with scales per row, which is all that `who` knows.
    pub(crate) fn check_simple(&self, who: &str, k: usize) -> Result<()> {
        let simple = self.format != CodeFormat::E4M3
            && matches!(self.levels, LevelBufs::Symmetric)
            && self.order.is_none()
            && self.scale_rows == 1
            && self.group != 0
            && k.is_multiple_of(self.group);
        if simple {
            return Ok(());
        }
        Err(Error::Config(format!(
            "{who}: no kernel for {}, K = {k}; supported are symmetric u4 and i8 codes with scales per row and group, \
             where groups divide K",
            self.in_words()
        )))
    }

    /// The form, for messages.
    pub(super) fn in_words(&self) -> String {
        let levels = match self.levels {
            LevelBufs::Symmetric => "symmetric levels",
            LevelBufs::Zeros(_) => "zero points",
            LevelBufs::Offsets(_) => "float offsets",
            LevelBufs::Codebook(_) => "a codebook",
        };
        let order = if self.order.is_some() {
            " and an activation order"
        } else {
            ""
        };
        format!(
            "{} codes with {levels}, {} by {} numbers per scale{order}",
            self.format.name(),
            self.scale_rows,
            self.group
        )
    }
}

impl LevelBufs {
    fn buf(&self) -> Option<&Buf> {
        match self {
            Self::Symmetric => None,
            Self::Zeros(buf) | Self::Offsets(buf) | Self::Codebook(buf) => Some(buf),
        }
    }
}

/// Rows that a matrix of `n` has room for: a GPU's kernels read whole tiles.
fn rows_held(device: &Device, n: usize) -> usize {
    match device {
        Device::Cpu => n,
        Device::Gpu(_) => gpu::rows_held(n),
    }
}

/// Brings elements to a device; the CPU takes them as they are.
fn put<T: HostElem>(device: &Device, elements: Vec<T>) -> Result<Buf> {
    if matches!(device, Device::Cpu) {
        return Ok(Buf::from_vec(elements));
    }
    let mut buf = device.alloc(T::KIND, elements.len())?;
    device.upload(&mut buf, 0, &elements)?;
    Ok(buf)
}

fn put_scales(device: &Device, scales: Scales) -> Result<Buf> {
    match scales {
        Scales::F32(v) => put(device, v),
        Scales::F16(v) => put(device, v),
        Scales::BF16(v) => put(device, v),
    }
}
