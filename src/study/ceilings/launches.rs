//! What a launch alone takes: kernels that do nothing, one after another in a graph.

use super::{Bed, Effort, Found};
use crate::error::Result;
use crate::kernels::Device;
use crate::kernels::stream::Nothing;

const NAME: &str = "launch gap";
const OVERLAPPING: &str = "launch gap, dependent";

pub(super) fn measure(bed: &Bed<'_>, found: &mut Found) -> Result<()> {
    match (bed.device, bed.effort) {
        (_, Effort::Brief) => return Ok(()),
        (Device::Cpu, Effort::Full) => {
            found.left_out(NAME, "the CPU launches nothing");
            return Ok(());
        }
        (Device::Gpu(_), Effort::Full) => {}
    }
    for (name, overlaps, how) in [
        (NAME, false, "each kernel waits for the one before"),
        (
            OVERLAPPING,
            true,
            "programmatic dependent launch: each may start while the one before ends",
        ),
    ] {
        let nothing = Nothing { overlaps };
        let timing = bed.time(&mut || nothing.run(bed.device))?;
        let how = format!("empty kernels on every multiprocessor in a graph; {how}");
        found.time(name, how, &timing);
    }
    Ok(())
}
