//! The facts about program and machine that somebody needs to repeat a measurement. No host name, no user, no path: a
//! record may be published.

use std::env;
use std::fs;
use std::path::Path;
use std::thread;

use jiff::{Timestamp, Unit};
use sysinfo::{CpuRefreshKind, System};

use super::board::Board;
use super::gpu::GpuFacts;
use super::nvml::{GpuSelector, NvmlGpu};
use super::unavailable::Unavailable;
use crate::units::Bytes;

/// Program, machine and moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Environment {
    /// The program.
    pub tool: Tool,
    /// The operating system.
    pub system: OperatingSystem,
    /// The host processor.
    pub cpu: Cpu,
    /// Memory of the machine.
    pub memory: Option<Bytes>,
    /// Memory that the container may use, where that is less.
    pub memory_limit: Option<Bytes>,
    /// The GPU, or why nothing is known of it.
    pub gpu: Result<GpuFacts, Unavailable>,
    /// Settings that change what is measured, by the names of their environment variables; those that are set.
    pub variables: Vec<(&'static str, String)>,
    /// When the facts were gathered, in UTC as RFC 3339.
    pub started: String,
}

/// The build of this program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tool {
    /// Version of the package.
    pub version: &'static str,
    /// Commit that was built, where the build came from a checkout; if files differed from it with
    /// `-dirty-` and a hash of what differed behind it.
    pub commit: Option<&'static str>,
    /// Cargo features that are on.
    pub features: Vec<&'static str>,
    /// Whether debug assertions are in; figures of such a build mean nothing.
    pub debug: bool,
}

/// The operating system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatingSystem {
    /// Name and version, as in `Linux (Ubuntu 24.04)`.
    pub name: Option<String>,
    /// Version of the kernel.
    pub kernel: Option<String>,
    /// Instruction set, as in `x86_64`.
    pub architecture: &'static str,
}

/// The host processor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpu {
    /// Model name.
    pub model: Option<String>,
    /// Physical cores.
    pub cores: Option<usize>,
    /// Hardware threads.
    pub hardware_threads: Option<usize>,
    /// Threads that the system lets this process run at once: affinity and container quota cut it down.
    pub usable_threads: Option<usize>,
    /// Threads of the pool that products on the CPU are spread over.
    pub pool_threads: usize,
    /// The largest of the caches of the first core; absent where the system does not tell.
    pub cache: Option<Bytes>,
    /// Vector instructions that are there, of those the program or its libraries use.
    pub simd: Vec<&'static str>,
}

/// What is kept of the process's environment. The whole is never dumped: it holds secrets.
const VARIABLES: [&str; 9] = [
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_MODULE_LOADING",
    "CUBLAS_WORKSPACE_CONFIG",
    "NVIDIA_TF32_OVERRIDE",
    "NCCL_ALGO",
    "NCCL_PROTO",
    "RAYON_NUM_THREADS",
];

impl Environment {
    /// The facts as they are now, with those of the GPU that `gpu` names, where the run uses one.
    pub fn gather(gpu: Option<&GpuSelector>) -> Self {
        let mut system = System::new().ok();
        if let Some(system) = &mut system {
            system.refresh_memory();
            system.refresh_cpu_list(CpuRefreshKind::nothing());
        }
        let memory = system.as_ref().map(|system| Bytes(system.total_memory()));
        let limit = system.as_ref().and_then(System::cgroup_limits);
        Self {
            tool: Tool::of_this_build(),
            system: OperatingSystem::running(),
            cpu: Cpu::of(system.as_ref()),
            memory,
            memory_limit: limit
                .map(|limits| Bytes(limits.total_memory))
                .filter(|&limit| memory.is_none_or(|memory| limit < memory)),
            gpu: match gpu {
                Some(selector) => NvmlGpu::open(selector).map(|gpu| gpu.facts()),
                None => Err(Unavailable::because("the run uses no GPU")),
            },
            variables: VARIABLES
                .into_iter()
                .filter_map(|name| Some((name, env::var(name).ok()?)))
                .collect(),
            started: now(),
        }
    }
}

impl Tool {
    /// The build that is running.
    pub fn of_this_build() -> Self {
        let features = [
            ("hub", cfg!(feature = "hub")),
            ("cuda", cfg!(feature = "cuda")),
        ];
        Self {
            version: env!("CARGO_PKG_VERSION"),
            commit: option_env!("CANDLEPOWER_COMMIT").filter(|commit| !commit.is_empty()),
            features: present(features),
            debug: cfg!(debug_assertions),
        }
    }
}

impl OperatingSystem {
    fn running() -> Self {
        Self {
            name: System::long_os_version().ok(),
            kernel: System::kernel_version().ok(),
            architecture: env::consts::ARCH,
        }
    }
}

impl Cpu {
    fn of(system: Option<&System>) -> Self {
        let cpus = system.map(System::cpus).unwrap_or_default();
        let model = cpus.first().map(|cpu| cpu.brand().trim().to_owned());
        Self {
            model: model.filter(|model| !model.is_empty()),
            cores: System::physical_core_count().ok(),
            hardware_threads: Some(cpus.len()).filter(|&count| count > 0),
            usable_threads: thread::available_parallelism().ok().map(usize::from),
            pool_threads: rayon::current_num_threads(),
            cache: largest_cache(),
            simd: simd(),
        }
    }
}

/// The largest cache of the first core; absent where the system does not tell.
pub fn largest_cache() -> Option<Bytes> {
    largest_cache_in(Path::new("/sys/devices/system/cpu/cpu0/cache"))
}

/// The largest of the caches in a folder of `sysfs`, where each has a file `size` such as `32768K`.
fn largest_cache_in(folder: &Path) -> Option<Bytes> {
    let caches = fs::read_dir(folder).ok()?.filter_map(Result::ok);
    let sizes = caches.filter_map(|cache| fs::read_to_string(cache.path().join("size")).ok());
    sizes.filter_map(|size| parse_size(size.trim())).max()
}

/// `48K`, `32M` or plain bytes.
fn parse_size(text: &str) -> Option<Bytes> {
    let units = [("K", 10), ("M", 20), ("G", 30)];
    let unit = units.iter().find(|(unit, _)| text.ends_with(unit));
    let (digits, shift) = unit.map_or((text, 0), |(unit, shift)| {
        (text.trim_end_matches(unit), *shift)
    });
    let number: u64 = digits.parse().ok()?;
    number.checked_mul(1 << shift).map(Bytes)
}

/// The moment in UTC, to the second, as RFC 3339.
fn now() -> String {
    let now = Timestamp::now();
    now.round(Unit::Second).unwrap_or(now).to_string()
}

#[cfg(target_arch = "x86_64")]
fn simd() -> Vec<&'static str> {
    use std::arch::is_x86_feature_detected as detected;
    present([
        ("avx", detected!("avx")),
        ("avx2", detected!("avx2")),
        ("fma", detected!("fma")),
        ("f16c", detected!("f16c")),
        ("avxvnni", detected!("avxvnni")),
        ("avx512f", detected!("avx512f")),
        ("avx512bw", detected!("avx512bw")),
        ("avx512vnni", detected!("avx512vnni")),
        ("avx512bf16", detected!("avx512bf16")),
        ("avx512fp16", detected!("avx512fp16")),
    ])
}

#[cfg(target_arch = "aarch64")]
fn simd() -> Vec<&'static str> {
    use std::arch::is_aarch64_feature_detected as detected;
    present([
        ("neon", detected!("neon")),
        ("fp16", detected!("fp16")),
        ("bf16", detected!("bf16")),
        ("dotprod", detected!("dotprod")),
        ("i8mm", detected!("i8mm")),
        ("sve", detected!("sve")),
    ])
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn simd() -> Vec<&'static str> {
    Vec::new()
}

/// The names of what is there.
fn present<const N: usize>(features: [(&'static str, bool); N]) -> Vec<&'static str> {
    features
        .into_iter()
        .filter_map(|(name, there)| there.then_some(name))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_of_this_machine_is_gathered_whole() {
        let environment = Environment::gather(None);
        assert_eq!(environment.tool.version, env!("CARGO_PKG_VERSION"));
        assert!(environment.cpu.pool_threads > 0);
        assert_eq!(environment.gpu.unwrap_err().reason, "the run uses no GPU");
        let started: Timestamp = environment.started.parse().unwrap();
        assert!(Timestamp::now().duration_since(started).as_secs() < 60);
        assert!(environment.started.ends_with('Z') && !environment.started.contains('.'));
    }

    #[test]
    fn a_gpu_that_is_not_there_leaves_its_reason() {
        let nobody = GpuSelector::from_cuda_uuid([0; 16]);
        let environment = Environment::gather(Some(&nobody));
        assert!(environment.gpu.unwrap_err().reason.starts_with("NVML"));
    }

    #[test]
    fn the_largest_cache_counts() {
        let folder = tempfile::tempdir().unwrap();
        for (name, size) in [
            ("index0", "48K\n"),
            ("index3", "32768K\n"),
            ("index2", "odd"),
        ] {
            let cache = folder.path().join(name);
            fs::create_dir(&cache).unwrap();
            fs::write(cache.join("size"), size).unwrap();
        }
        assert_eq!(largest_cache_in(folder.path()), Some(Bytes(32 << 20)));
        assert_eq!(largest_cache_in(&folder.path().join("none")), None);
        assert_eq!(parse_size("2M"), Some(Bytes(2 << 20)));
        assert_eq!(parse_size("99999999999999999999G"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn linux_tells_memory_cores_and_kernel() {
        let environment = Environment::gather(None);
        assert!(environment.memory.unwrap() > Bytes(1 << 24));
        assert!(environment.cpu.hardware_threads.unwrap() > 0);
        assert!(environment.system.kernel.is_some());
    }
}
