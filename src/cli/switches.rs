//! What the engine does on a GPU and may do without, to see what it is worth.

use clap::{Args, ValueEnum};

use crate::error::{Error, Result};
use crate::kernels::Device;
use crate::study::Switches;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Switch {
    /// As usual
    On,
    /// Without it
    Off,
}

impl Switch {
    pub(super) fn is_on(self) -> bool {
        self == Self::On
    }
}

/// The switch that counts wherever the engine runs.
#[derive(Args)]
#[command(next_help_heading = "Launches")]
pub(super) struct FuseFlag {
    /// Whether a GPU does several ops in one launch where that should be faster, with the same results, or op by op
    /// [default: on]
    #[arg(long, value_enum, value_name = "on|off")]
    fuse: Option<Switch>,
}

impl FuseFlag {
    pub(super) fn is_given(&self) -> bool {
        self.fuse.is_some()
    }

    /// Switches `device`.
    ///
    /// # Errors
    /// [`Error::Usage`] if it launches nothing.
    pub(super) fn apply(&self, device: &Device) -> Result<()> {
        match (self.fuse, device) {
            (Some(switch), Device::Gpu(gpu)) => {
                gpu.set_fused(switch.is_on());
                Ok(())
            }
            (Some(_), Device::Cpu) => Err(Error::Usage(
                "--fuse is for a GPU: on the CPU there are no launches".into(),
            )),
            (None, _) => Ok(()),
        }
    }
}

/// All switches, for what is timed.
#[derive(Args)]
#[command(next_help_heading = "Launches")]
pub(super) struct SwitchFlags {
    #[command(flatten)]
    fuse: FuseFlag,
    /// Whether a GPU records each decode step once and replays it as a CUDA graph, or launches kernel by kernel [default:
    /// on]
    #[arg(long, value_enum, value_name = "on|off")]
    graphs: Option<Switch>,
    /// Whether a kernel may start while the one before it ends (programmatic dependent launch, from compute capability 9
    /// on) [default: on]
    #[arg(long, value_enum, value_name = "on|off")]
    pdl: Option<Switch>,
    /// Whether a GPU decodes a token of one sequence in one launch (a persistent kernel), where there is one for the
    /// model's weights and heads [default: off]
    #[arg(long, value_enum, value_name = "on|off")]
    persistent: Option<Switch>,
}

impl SwitchFlags {
    pub(super) fn switches(&self) -> Switches {
        let state = |switch: Option<Switch>| switch.map(Switch::is_on);
        Switches {
            graphs: state(self.graphs),
            fuse: state(self.fuse.fuse),
            overlap: state(self.pdl),
            persistent: state(self.persistent),
        }
    }
}
