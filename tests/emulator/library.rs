//! A library of kernels of `tests/fixtures/emulator/`, and launching what is in it.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_void};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::build;

pub(crate) const FORWARD: u64 = 0;
pub(crate) const BACKWARD: u64 = 1;
pub(crate) const ORDERS: [u64; 6] = [FORWARD, BACKWARD, 2, 3, 4, 5];

/// Of memory that nobody wrote.
pub(crate) const POISON: u32 = 0xffff_ffff;

#[repr(C)]
struct EmuKernel {
    name: *const c_char,
    args: u32,
    arg_sizes: *const u32,
}

type Kernels = unsafe extern "C" fn(*mut *const EmuKernel) -> u32;
type Launch =
    unsafe extern "C" fn(u32, *const u32, u32, u32, *const *const c_void, u64) -> *const c_char;

/// An argument of a kernel: its bytes.
pub(crate) struct Arg(Vec<u8>);

impl From<u32> for Arg {
    fn from(value: u32) -> Self {
        Self(value.to_ne_bytes().to_vec())
    }
}

/// A struct of two numbers.
impl From<[u32; 2]> for Arg {
    fn from(values: [u32; 2]) -> Self {
        Self(
            values
                .iter()
                .flat_map(|value| value.to_ne_bytes())
                .collect(),
        )
    }
}

impl<T> From<&[T]> for Arg {
    fn from(values: &[T]) -> Self {
        Self((values.as_ptr() as usize).to_ne_bytes().to_vec())
    }
}

impl<T> From<&mut [T]> for Arg {
    fn from(values: &mut [T]) -> Self {
        Self((values.as_mut_ptr() as usize).to_ne_bytes().to_vec())
    }
}

/// `args![x, &in[..], &mut out[..]]`: the arguments of a launch.
macro_rules! args {
    ($($arg:expr),* $(,)?) => { &[$($crate::library::Arg::from($arg)),*] };
}
pub(crate) use args;

/// 16 bytes, as aligned as loads of so many have to be.
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Vector(pub(crate) [u32; 4]);

/// How a kernel is launched.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) blocks: u32,
    pub(crate) threads: u32,
    pub(crate) shared: u32,
    pub(crate) order: u64,
}

impl Shape {
    pub(crate) fn block(threads: u32) -> Self {
        Self {
            blocks: 1,
            threads,
            shared: 0,
            order: FORWARD,
        }
    }

    pub(crate) fn warp() -> Self {
        Self::block(32)
    }
}

pub(crate) struct Library {
    kernels: HashMap<String, (u32, Vec<u32>)>,
    launch: Launch,
    // Keeps the code in place.
    _library: libloading::Library,
}

impl Library {
    /// Of `tests/fixtures/emulator/<stem>.cu`.
    pub(crate) fn open(stem: &str) -> Self {
        Self::with(stem, &[])
    }

    pub(crate) fn with(stem: &str, define: &[&str]) -> Self {
        let source = Path::new("tests/fixtures/emulator")
            .join(stem)
            .with_extension("cu");
        let folder = build::libraries(&build::Build {
            sources: vec![source],
            define,
            ..build::Build::default()
        });
        Self::load(&folder.join(stem).with_extension("so"))
    }

    pub(crate) fn load(path: &Path) -> Self {
        // SAFETY: the library was made from the emulator's sources: its initialisers only register kernels, and its two
        // functions have these types.
        unsafe {
            let library = libloading::Library::new(path).unwrap_or_else(|e| panic!("{e}"));
            let kernels: Kernels = *library.get(b"emu_kernels").unwrap();
            let launch: Launch = *library.get(b"emu_launch").unwrap();
            let mut list = std::ptr::null();
            let count = kernels(&mut list);
            let kernels = (0..count).map(|i| {
                let kernel = &*list.add(i as usize);
                let sizes = std::slice::from_raw_parts(kernel.arg_sizes, kernel.args as usize);
                let name = CStr::from_ptr(kernel.name).to_str().unwrap().to_owned();
                (name, (i, sizes.to_vec()))
            });
            Self {
                kernels: kernels.collect(),
                launch,
                _library: library,
            }
        }
    }

    pub(crate) fn launch(&self, name: &str, shape: Shape, args: &[Arg]) -> Result<(), String> {
        /// A library that was opened twice is one; only one launch at a time is allowed in it.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let (kernel, sizes) = self
            .kernels
            .get(name)
            .unwrap_or_else(|| panic!("no kernel {name}"));
        let given: Vec<u32> = args.iter().map(|Arg(bytes)| bytes.len() as u32).collect();
        assert_eq!(*sizes, given, "{name}");
        let aligned: Vec<u64> = args
            .iter()
            .map(|Arg(bytes)| {
                let mut word = [0; 8];
                word[..bytes.len()].copy_from_slice(bytes);
                u64::from_ne_bytes(word)
            })
            .collect();
        let pointers: Vec<*const c_void> = aligned
            .iter()
            .map(|word| std::ptr::from_ref(word).cast())
            .collect();
        let grid = [shape.blocks, 1, 1];
        let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the arguments have the sizes that the library asks for, and those that are addresses lead to buffers of
        // the caller, in which the kernels of the fixtures stay; the text is copied before another launch.
        unsafe {
            let message = (self.launch)(
                *kernel,
                grid.as_ptr(),
                shape.threads,
                shape.shared,
                pointers.as_ptr(),
                shape.order,
            );
            if message.is_null() {
                return Ok(());
            }
            Err(CStr::from_ptr(message).to_str().unwrap().to_owned())
        }
    }

    /// Launches what must go wrong, with a message that has all of `parts`.
    pub(crate) fn expect_fault(&self, name: &str, shape: Shape, args: &[Arg], parts: &[&str]) {
        let message = self.launch(name, shape, args).expect_err(name);
        for part in [name].iter().chain(parts) {
            assert!(message.contains(part), "'{message}' does not say '{part}'");
        }
    }
}
