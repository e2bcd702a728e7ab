//! Libraries of kernels compiled for the host: one shared object for every `.cu` file, with the C interface of
//! `kernels/host/`.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_void};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use super::super::driver::{Follows, Grid};
use crate::error::{Error, Result};

/// `EmuKernel` of `kernels/host/`.
#[repr(C)]
struct EmuKernel {
    name: *const c_char,
    args: u32,
    arg_sizes: *const u32,
}

type Kernels = unsafe extern "C" fn(*mut *const EmuKernel) -> u32;
type Launch = unsafe extern "C" fn(
    kernel: u32,
    grid: *const u32,
    threads: u32,
    shared_bytes: u32,
    args: *const *mut c_void,
    order: u64,
) -> *const c_char;

type Waited = unsafe extern "C" fn() -> u32;

/// A shared object that is open.
struct Library {
    launch: Launch,
    waited: Waited,
    /// Held while a kernel runs: what is `static` in a library is shared by every thread of this program.
    running: Mutex<()>,
    kernels: Vec<Declared>,
    path: PathBuf,
    // Goes last: the code must be there for as long as `launch`.
    _handle: libloading::Library,
}

/// What a library says of a kernel.
struct Declared {
    name: String,
    sizes: Vec<usize>,
}

/// A kernel and the library it is in.
pub(super) struct Kernel {
    library: Arc<Library>,
    index: u32,
}

/// Libraries that are open, by path: opening one twice gives the same one, and so must its lock be.
static OPEN: LazyLock<Mutex<HashMap<PathBuf, Weak<Library>>>> = LazyLock::new(Mutex::default);

/// The kernels of every library in `folder`, by name.
///
/// # Errors
/// If there is no library, one cannot be opened or is not one of kernels, or a name occurs twice.
pub(super) fn open_all(folder: &Path) -> Result<HashMap<String, Kernel>> {
    let entries = fs::read_dir(folder).map_err(|e| Error::reading(folder, "cannot read", e))?;
    let mut kernels: HashMap<String, Kernel> = HashMap::new();
    for entry in entries {
        let path = entry
            .map_err(|e| Error::reading(folder, "cannot read", e))?
            .path();
        if path.extension().is_none_or(|extension| extension != "so") {
            continue;
        }
        let library = open(&path)?;
        for (index, declared) in (0..).zip(&library.kernels) {
            let kernel = Kernel {
                library: Arc::clone(&library),
                index,
            };
            if let Some(other) = kernels.insert(declared.name.clone(), kernel) {
                return Err(Error::data(
                    &path,
                    format!(
                        "the kernel '{}' is in {} too",
                        declared.name,
                        other.library.path.display()
                    ),
                ));
            }
        }
    }
    if kernels.is_empty() {
        return Err(Error::NoDevice(format!(
            "{}: no kernels compiled for the host",
            folder.display()
        )));
    }
    Ok(kernels)
}

fn open(path: &Path) -> Result<Arc<Library>> {
    let path = path
        .canonicalize()
        .map_err(|e| Error::reading(path, "cannot open", e))?;
    let mut all = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(library) = all.get(&path).and_then(Weak::upgrade) {
        return Ok(library);
    }
    let refused = |e: libloading::Error| Error::data(&path, format!("no library of kernels: {e}"));
    // SAFETY: whoever names the folder vouches for what lies in it, as with any program; its initialisers fill a list.
    let handle = unsafe { libloading::Library::new(&path) }.map_err(refused)?;
    // SAFETY: the functions have these types in kernels/host/, and are used while `handle` lives.
    let (list, launch, waited) = unsafe {
        let list = handle.get::<Kernels>(b"emu_kernels\0").map_err(refused)?;
        let launch = handle.get::<Launch>(b"emu_launch\0").map_err(refused)?;
        let waited = handle.get::<Waited>(b"emu_waited\0").map_err(refused)?;
        (*list, *launch, *waited)
    };
    let library = Arc::new(Library {
        launch,
        waited,
        running: Mutex::default(),
        kernels: declared(list),
        path: path.clone(),
        _handle: handle,
    });
    all.insert(path, Arc::downgrade(&library));
    Ok(library)
}

fn declared(list: Kernels) -> Vec<Declared> {
    let mut first = std::ptr::null();
    // SAFETY: the library writes where its list is, and gives its length; names and sizes are as it says and stay there as
    // long as the library is open.
    unsafe {
        let count = list(&raw mut first);
        (0..count as usize)
            .map(|i| {
                let kernel = &*first.add(i);
                Declared {
                    name: CStr::from_ptr(kernel.name).to_string_lossy().into_owned(),
                    sizes: (0..kernel.args as usize)
                        .map(|arg| *kernel.arg_sizes.add(arg) as usize)
                        .collect(),
                }
            })
            .collect()
    }
}

impl Kernel {
    /// Refuses arguments whose number or sizes are not the kernel's.
    pub(super) fn check_arguments(&self, name: &str, sizes: &[usize]) -> Result<()> {
        let wanted = &self.library.kernels[self.index as usize].sizes;
        if sizes.len() != wanted.len() {
            return Err(Error::Internal(format!(
                "kernel '{name}' takes {} arguments, and is launched with {}",
                wanted.len(),
                sizes.len()
            )));
        }
        for (i, (size, wanted)) in sizes.iter().zip(wanted).enumerate() {
            if size != wanted {
                return Err(Error::Internal(format!(
                    "argument {i} (from 0) of kernel '{name}' has {wanted} bytes, and is launched with {size}"
                )));
            }
        }
        Ok(())
    }

    /// Runs a grid to its end.
    ///
    /// # Safety
    /// The arguments are those of the kernel, and every address in them leads to as much host memory as it uses.
    pub(super) unsafe fn run(
        &self,
        name: &str,
        grid: Grid,
        args: &[*mut c_void],
        order: u64,
    ) -> Result<()> {
        let library = &self.library;
        let _running = library
            .running
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the arguments are the kernel's by contract, nobody else runs one of this library, and its message is read
        // before anybody can.
        unsafe {
            let said = (library.launch)(
                self.index,
                grid.blocks.as_ptr(),
                grid.threads,
                grid.shared_bytes,
                args.as_ptr(),
                order,
            );
            if !said.is_null() {
                let said = CStr::from_ptr(said).to_string_lossy();
                return Err(Error::Device(format!("kernel '{name}': {said}")));
            }
            if grid.follows == Follows::Overlapping && (library.waited)() == 0 {
                return Err(Error::Device(format!(
                    "kernel '{name}' may overlap with its predecessor and does not wait for it"
                )));
            }
            Ok(())
        }
    }
}
