//! What the compiler made of the kernels, read off the machine code: nothing spills, the streaming products load 16 bytes
//! at a time and multiply by matrix instructions, and their loops keep to the budgets written beside them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use super::fatbins;

/// One instruction: where it lies, what it does, on what.
struct Instruction {
    address: u64,
    opcode: String,
    operands: String,
}

/// The machine code of one kernel for one architecture.
struct Code {
    kernel: String,
    architecture: String,
    instructions: Vec<Instruction>,
}

/// Every kernel of a fatbin for every architecture.
fn disassembled(fatbin: &Path) -> &'static [Code] {
    // Once for all tests: it takes a minute.
    static ALL: LazyLock<BTreeMap<PathBuf, Vec<Code>>> = LazyLock::new(|| {
        let all = fatbins().into_iter();
        all.map(|fatbin| {
            let code = disassemble(&fatbin);
            (fatbin, code)
        })
        .collect()
    });
    &ALL[fatbin]
}

/// By the disassembler of the CUDA toolkit.
fn disassemble(fatbin: &Path) -> Vec<Code> {
    let output = Command::new("cuobjdump")
        .arg("-sass")
        .arg(fatbin)
        .output()
        .expect("cuobjdump of a CUDA toolkit in PATH: kernels/toolkit.sh run cargo test ...");
    assert!(
        output.status.success(),
        "cuobjdump {}: {}",
        fatbin.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8_lossy(&output.stdout);
    let mut all: Vec<Code> = Vec::new();
    let mut architecture = String::new();
    for line in text.lines() {
        let line = line.trim();
        if let Some(name) = line.strip_prefix("code for ") {
            architecture = name.to_owned();
        } else if let Some(name) = line.strip_prefix("Function : ") {
            all.push(Code {
                kernel: name.to_owned(),
                architecture: architecture.clone(),
                instructions: Vec::new(),
            });
        } else if let (Some(code), Some(instruction)) = (all.last_mut(), instruction(line)) {
            code.instructions.push(instruction);
        }
    }
    assert!(!all.is_empty(), "{} holds no kernel", fatbin.display());
    all
}

/// `/*0010*/ @!P0 LDS.128 R4, [R2] ; /* encoding */`; nothing on lines that hold an encoding alone.
fn instruction(line: &str) -> Option<Instruction> {
    let (address, rest) = line.strip_prefix("/*")?.split_once("*/")?;
    let address = u64::from_str_radix(address, 16).ok()?;
    let (text, _) = rest.split_once(';')?;
    let mut text = text.trim();
    if text.starts_with('@') {
        text = text.split_once(' ')?.1.trim_start();
    }
    let (opcode, operands) = text.split_once(' ').unwrap_or((text, ""));
    Some(Instruction {
        address,
        opcode: opcode.to_owned(),
        operands: operands.trim().to_owned(),
    })
}

impl Code {
    /// The name with the architecture, for messages.
    fn name(&self) -> String {
        format!("{} for {}", self.kernel, self.architecture)
    }

    fn has(&self, prefix: &str) -> bool {
        self.instructions
            .iter()
            .any(|i| i.opcode.starts_with(prefix))
    }

    fn first(&self, prefix: &str) -> Option<u64> {
        let found = self
            .instructions
            .iter()
            .find(|i| i.opcode.starts_with(prefix));
        found.map(|i| i.address)
    }

    /// The instructions of the shortest loop with a matrix instruction in it.
    fn main_loop(&self) -> &[Instruction] {
        let mut best: Option<&[Instruction]> = None;
        for (end, branch) in self.instructions.iter().enumerate() {
            let target = branch
                .opcode
                .starts_with("BRA")
                .then(|| branch.operands.rsplit("0x").next())
                .flatten()
                .and_then(|target| u64::from_str_radix(target.trim(), 16).ok());
            let Some(target) = target.filter(|&target| target < branch.address) else {
                continue;
            };
            let start = self.instructions.partition_point(|i| i.address < target);
            let body = &self.instructions[start..=end];
            if body.iter().any(is_matrix) && best.is_none_or(|best| body.len() < best.len()) {
                best = Some(body);
            }
        }
        best.unwrap_or_else(|| panic!("{}: no loop with a matrix instruction", self.name()))
    }
}

fn is_matrix(instruction: &Instruction) -> bool {
    ["HMMA", "IMMA", "HGMMA", "IGMMA"]
        .iter()
        .any(|name| instruction.opcode.starts_with(name))
}

/// Bit operations, byte permutations and packed 16-bit arithmetic: what turns codes into numbers.
fn dequantises(instruction: &Instruction) -> bool {
    ["LOP3", "SHF", "PRMT", "HFMA2", "HADD2", "HMUL2"]
        .iter()
        .any(|name| instruction.opcode.starts_with(name))
}

/// Bytes that a kernel may keep in local memory, and bytes that all its instructions together may store there. A whole step
/// in one kernel has more that outlives an op than registers (`step.cu`); what begins with the weights of the next product
/// stands in it several times, and each stores for itself, outside of the loops over weights.
fn kept_in_memory(fatbin: &Path) -> [u64; 2] {
    match fatbin.file_stem() {
        Some(stem) if stem == "step" => [160, 512],
        _ => [0, 0],
    }
}

#[test]
fn nothing_spills_or_lies_in_local_memory() {
    for fatbin in fatbins() {
        let allowed = kept_in_memory(&fatbin);
        let log = fs::read_to_string(fatbin.with_extension("ptxas")).unwrap();
        let mut kernel = "";
        for line in log.lines() {
            if let Some((_, rest)) = line.split_once("Compiling entry function '") {
                kernel = rest.split('\'').next().unwrap();
            }
            // What ptxas says where products of warpgroups have to wait for each other after all.
            assert!(!line.contains("serialized"), "{line}");
            if line.contains("bytes stack frame") {
                let bytes: Vec<u64> = line
                    .split(|c: char| !c.is_ascii_digit())
                    .filter_map(|number| number.parse().ok())
                    .collect();
                let [frame, stored, _] = bytes[..] else {
                    panic!("{line}");
                };
                assert!(
                    frame <= allowed[0] && stored <= allowed[1],
                    "{kernel} of {}: {line}",
                    fatbin.display()
                );
            }
        }
        if allowed[0] > 0 {
            continue;
        }
        for code in disassembled(&fatbin) {
            for opcode in ["LDL", "STL"] {
                assert!(!code.has(opcode), "{}: {opcode}", code.name());
            }
        }
    }
}

/// What a line `// gate <storage> <size>: <issued> <dequantising>` of a source allows per weight of a lane.
struct Budget {
    issued: f64,
    dequantising: f64,
}

/// By kernel name.
fn budgets(stem: &str) -> BTreeMap<String, Budget> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("kernels")
        .join(stem)
        .with_extension("cu");
    let source = fs::read_to_string(path).unwrap();
    let lines = source.lines().filter_map(|l| l.strip_prefix("// gate "));
    lines
        .map(|line| {
            let words: Vec<&str> = line.split([' ', ':']).filter(|w| !w.is_empty()).collect();
            let [storage, size, issued, dequantising] = words[..] else {
                panic!("{stem}.cu: '{line}' is no budget");
            };
            let budget = Budget {
                issued: issued.parse().unwrap(),
                dequantising: dequantising.parse().unwrap(),
            };
            (format!("{stem}_{storage}_{size}"), budget)
        })
        .collect()
}

/// Weights that a lane turns into fragments in a loop's body: 16 x 64 of each tile and step, of which the body of
/// `linear_wgmma` has two.
fn weights_of_a_lane(kernel: &str) -> f64 {
    let size = kernel.rsplit('_').next().unwrap();
    let tiles: f64 = size.split('x').next().unwrap().parse().unwrap();
    let steps = if is_wgmma(kernel) { 2.0 } else { 1.0 };
    steps * tiles * 16.0 * 64.0 / 32.0
}

fn is_wgmma(kernel: &str) -> bool {
    kernel.starts_with("linear_wgmma")
}

/// The matrix instruction of a streaming product.
fn matrix_instruction(kernel: &str) -> &'static str {
    match (is_wgmma(kernel), kernel.contains("w8a8")) {
        (false, false) => "HMMA.16816.F32",
        (false, true) => "IMMA.16832",
        (true, false) => "HGMMA.64x",
        (true, true) => "IGMMA.64x",
    }
}

#[test]
fn streaming_products_load_wide_multiply_by_matrix_instructions_and_keep_to_their_budgets() {
    for stem in ["linear_few", "linear_fused", "linear_tile", "linear_wgmma"] {
        let fatbin = fatbins()
            .into_iter()
            .find(|path| path.file_stem().is_some_and(|s| s == stem))
            .unwrap();
        let budgets = budgets(stem);
        assert!(!budgets.is_empty(), "{stem}.cu states no budget");
        let mut held = 0;
        for code in disassembled(&fatbin) {
            let name = code.name();
            if is_wgmma(&code.kernel) && !code.architecture.starts_with("sm_9") {
                assert!(
                    !code.has("LDG"),
                    "{name} reads memory, though it has nothing to do"
                );
                continue;
            }
            let body = code.main_loop();
            let count =
                |test: &dyn Fn(&Instruction) -> bool| body.iter().filter(|i| test(i)).count();
            let copies = count(&|i| i.opcode.starts_with("LDGSTS") && i.opcode.contains(".128"));
            assert!(copies > 0, "{name}: no copies of 16 bytes");
            assert_eq!(
                copies,
                count(&|i| i.opcode.starts_with("LDGSTS")),
                "{name}: copies of less than 16 bytes"
            );
            assert!(
                count(&|i| i.opcode.starts_with("LDS") && i.opcode.contains(".128")) > 0,
                "{name}: no loads of 16 bytes from shared memory"
            );
            let instruction = matrix_instruction(&code.kernel);
            assert!(
                count(&|i| i.opcode.starts_with(instruction)) > 0,
                "{name}: no {instruction}"
            );
            if code.architecture.starts_with("sm_9") {
                let (wait, copy) = (code.first("ACQBULK"), code.first("LDGSTS"));
                assert!(
                    code.has("PREEXIT") && wait.is_some() && copy < wait,
                    "{name}: weights are not on their way before the wait for the launch before"
                );
            }
            if let Some(budget) = budgets.get(&code.kernel) {
                held += 1;
                let weights = weights_of_a_lane(&code.kernel);
                let (issued, dequantising) = (
                    body.len() as f64 / weights,
                    count(&dequantises) as f64 / weights,
                );
                assert!(
                    issued <= budget.issued && dequantising <= budget.dequantising,
                    "{name}: {issued:.2} instructions per weight, {dequantising:.2} to dequantise; the budget is {} and {}",
                    budget.issued,
                    budget.dequantising
                );
            }
        }
        let architectures = if is_wgmma(stem) { 1 } else { 2 };
        assert_eq!(
            held,
            architectures * budgets.len(),
            "a budget of {stem}.cu is for no kernel"
        );
    }
}

#[test]
fn attention_by_matrix_instructions_has_them_and_copies_wide() {
    for stem in ["attention_single", "attention_runs", "attention_wgmma"] {
        let fatbin = fatbins()
            .into_iter()
            .find(|path| path.file_stem().is_some_and(|s| s == stem))
            .unwrap();
        let by_warpgroups = stem == "attention_wgmma";
        for code in disassembled(&fatbin) {
            let name = code.name();
            if by_warpgroups && !code.architecture.starts_with("sm_9") {
                continue;
            }
            let instruction = if by_warpgroups {
                "HGMMA.64x"
            } else {
                "HMMA.16816.F32"
            };
            assert!(code.has(instruction), "{name}: no matrix instruction");
            assert!(
                by_warpgroups || code.has("LDSM"),
                "{name}: no loads of matrices"
            );
            let copies = code
                .instructions
                .iter()
                .filter(|i| i.opcode.starts_with("LDGSTS"));
            let wide = copies.clone().filter(|i| i.opcode.contains(".128")).count();
            // Scales of codes come one by one, a lane each.
            let coded = ["_int8_", "_fp8_"].iter().any(|kv| name.contains(kv));
            let narrow = copies.count() - wide;
            assert!(
                wide > 0 && (narrow > 0) == coded,
                "{name}: {wide} copies of 16 bytes and {narrow} of less"
            );
            if code.architecture.starts_with("sm_9") {
                assert!(
                    code.has("PREEXIT") && code.first("ACQBULK") < code.first("LDGSTS"),
                    "{name}: the cache is read before the wait for the launch before"
                );
            }
        }
    }
}

/// Weights of a step's first product are on their way before the wait for the launch before, and every product and
/// attention has its matrix instructions.
#[test]
fn a_step_in_one_launch_copies_wide_and_waits_late() {
    let fatbin = fatbins()
        .into_iter()
        .find(|path| path.file_stem().is_some_and(|s| s == "step"))
        .unwrap();
    for code in disassembled(&fatbin) {
        let name = code.name();
        let narrow =
            |i: &&Instruction| i.opcode.starts_with("LDGSTS") && !i.opcode.contains(".128");
        assert_eq!(code.instructions.iter().filter(narrow).count(), 0, "{name}");
        for opcode in ["HMMA.16816.F32", "LDSM", "RED", "LDG.E.STRONG.GPU"] {
            assert!(code.has(opcode), "{name}: no {opcode}");
        }
        if code.architecture.starts_with("sm_9") {
            let (wait, copy) = (code.first("ACQBULK"), code.first("LDGSTS"));
            assert!(wait.is_some() && copy < wait, "{name}");
        }
    }
}

/// A kernel that did not wait for the grid before it could be done before that one is, and the next in line would begin too
/// early.
#[test]
fn every_kernel_waits_for_the_launch_before() {
    for fatbin in fatbins() {
        for code in disassembled(&fatbin) {
            // What measures a launch alone is launched without overlap.
            if !code.architecture.starts_with("sm_9") || code.kernel == "nothing" {
                continue;
            }
            let wait = code.first("ACQBULK");
            let wait = wait.unwrap_or_else(|| panic!("{} does not wait", code.name()));
            for store in ["STG", "RED", "ATOM"] {
                let early = code.first(store).is_some_and(|store| store < wait);
                assert!(!early, "{}: {store} before it waits", code.name());
            }
        }
    }
}

/// What the launch before has written may not be read as if it never changed: the order of such loads is free, and this
/// launch may have begun before that one has written. A `__restrict__` is enough for the compiler to read so. What measures
/// memory reads what nobody writes.
#[test]
fn nothing_is_read_as_if_it_never_changed() {
    for fatbin in fatbins() {
        if fatbin.file_stem().is_some_and(|stem| stem == "stream") {
            continue;
        }
        for code in disassembled(&fatbin) {
            let constant =
                |i: &&Instruction| i.opcode.starts_with("LDG") && i.opcode.contains("CONSTANT");
            if let Some(load) = code.instructions.iter().find(constant) {
                panic!("{} at {:#x}: {}", code.name(), load.address, load.opcode);
            }
        }
    }
}

/// A descriptor of memory takes two registers, the first of them even. Where the shared address of a copy has a uniform
/// part and the copy a cache policy, ptxas 13.0 for sm_90a forgets to say which registers both are in; the disassembler
/// then shows `[R21+UR0], desc[UR1]`, and the GPU takes it for an illegal instruction.
#[test]
fn every_descriptor_is_in_a_pair_of_registers() {
    let mut seen = 0;
    for fatbin in fatbins() {
        for code in disassembled(&fatbin) {
            for instruction in &code.instructions {
                let Some((_, rest)) = instruction.operands.split_once("desc[UR") else {
                    continue;
                };
                let register = rest.split(']').next().and_then(|n| n.parse::<u32>().ok());
                let register = register.unwrap_or_else(|| panic!("{}: desc[UR{rest}", code.name()));
                assert!(
                    register.is_multiple_of(2),
                    "{} at {:#x}: {} {}",
                    code.name(),
                    instruction.address,
                    instruction.opcode,
                    instruction.operands
                );
                seen += 1;
            }
        }
    }
    assert!(seen > 1000, "{seen}");
}
