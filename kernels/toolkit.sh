#!/usr/bin/env bash
# What the `cuda` build needs, for a machine that lacks it: the CUDA compiler and libraries as pinned pip wheels, and a
# stand-in for the driver's libcuda where there is no driver. The default build needs none of this.
#
#   eval "$(kernels/toolkit.sh)"       prepare, then set the variables that `cargo build --features cuda` reads
#   kernels/toolkit.sh run CMD...      prepare, then run CMD so that a `cuda` binary also starts
#
# A CUDA toolkit that is already there (CUDA_HOME, or nvcc in PATH) is used as it is, and a libcuda that is already there
# is never shadowed. Everything else goes into $CANDLEPOWER_TOOLKIT (default: .toolkit beside Cargo.toml), about 1.3 GB;
# a second call finds it done. Needs bash, gcc, cargo and python3 with pip.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
package=$(dirname "$here")
root=${CANDLEPOWER_TOOLKIT:-$package/.toolkit}

# One CUDA minor release throughout: libraries of mixed releases link, then fail when the first kernel is launched.
wheels=(
  nvidia-cuda-nvcc==13.0.88
  nvidia-nvvm==13.0.88
  nvidia-cuda-crt==13.0.88
  nvidia-cuda-runtime==13.0.96
  nvidia-cuda-cccl==13.0.85
  nvidia-cuda-nvrtc==13.0.88
  nvidia-cublas==13.0.2.14
  nvidia-curand==10.4.0.35
  # Disassemblers, for the tests that read the machine code; these releases read code of 13.0.
  nvidia-cuda-cuobjdump==13.5.37
  nvidia-cuda-nvdisasm==13.5.37
)
cudarc_version=13000

say() { echo "toolkit: $*" >&2; }
die() {
  say "$*"
  exit 1
}

# Succeeds if file $1 says that its neighbours were made from $2.
is_made_from() { [[ -f $1 && $(<"$1") == "$2" ]]; }

# Prints the home of a CUDA toolkit that someone else installed; fails if there is none.
installed_toolkit() {
  local nvcc home
  if [[ -n ${CUDA_HOME:-} && -x $CUDA_HOME/bin/nvcc ]]; then
    home=$CUDA_HOME
  else
    nvcc=$(command -v nvcc) || return 1
    home=$(dirname "$(dirname "$(readlink -f "$nvcc")")")
  fi
  # What this script made in an earlier call, seen through its own variables, is not someone else's.
  [[ $(readlink -f "$home") != "$(readlink -f "$root")"/* ]] || return 1
  echo "$home"
}

# Succeeds if the NVIDIA driver is installed. (No `grep -q`: it would end ldconfig by SIGPIPE, which pipefail reports.)
has_driver() { ldconfig -p 2>/dev/null | grep 'libcuda\.so\.1 ' >/dev/null; }

# Makes $root/cuda from the wheels and prints its CUDA home.
wheel_toolkit() {
  local tree=$root/cuda home=$root/cuda/nvidia/cu13 key partial name
  key=$(printf '%s\n' "${wheels[@]}" "$(declare -f wheel_toolkit)" | sha256sum)
  if ! is_made_from "$tree/made-from" "$key"; then
    [[ $(uname -sm) == 'Linux x86_64' ]] || die "the wheels are pinned for Linux on x86_64; install CUDA 12 or 13 yourself"
    python3 -m pip --version >/dev/null 2>&1 || die "python3 with pip is missing (Debian: apt-get install python3-pip)"
    say "installing ${#wheels[@]} wheels into $tree"
    mkdir -p "$root"
    partial=$(mktemp -d "$root/cuda.XXXXXX")
    # shellcheck disable=SC2064
    trap "rm -rf '$partial'" EXIT
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore \
      --no-deps --only-binary=:all: --no-compile --target "$partial" "${wheels[@]}" >&2 ||
      die "pip could not install the CUDA wheels (see above)"
    # The wheels carry versioned libraries alone, under `lib`; linkers ask for plain names and cudarc looks in `lib64`.
    (
      cd "$partial/nvidia/cu13"
      ln -s lib lib64
      cd lib
      for name in libcudart libcublas libcublasLt libnvrtc libcurand; do
        ln -s "$name".so.[0-9]* "$name.so"
      done
    )
    echo "$key" >"$partial/made-from"
    rm -rf "$tree"
    mv -T "$partial" "$tree"
    trap - EXIT
  fi
  echo "$home"
}

# Makes $root/stub/libcuda.so.1 for the toolkit at $1. It is there to be linked against, and to let a `cuda` binary start
# where no driver is: cuInit says 100, CUDA_ERROR_NO_DEVICE, and so does every other entry. It is never shipped.
stub_driver() {
  local stub=$root/stub header=$1/include/cuda.h cudarc key
  [[ -f $header ]] || die "no $header: the CUDA toolkit is incomplete"
  key=$({
    cat "$header"
    grep -A1 '^name = "cudarc"' "$package/Cargo.lock"
    declare -f stub_driver
  } | sha256sum)
  is_made_from "$stub/made-from" "$key" && return
  command -v gcc >/dev/null || die "gcc is missing (Debian: apt-get install gcc)"
  say "making a stand-in for libcuda in $stub"
  mkdir -p "$stub"
  # cudarc names entries of later releases than the header's; an undefined one would fail the link.
  cudarc=$(cargo metadata --manifest-path "$package/Cargo.toml" --locked --format-version 1 --features cuda |
    python3 -c 'import json, os, sys
print(*(os.path.dirname(p["manifest_path"]) for p in json.load(sys.stdin)["packages"] if p["name"] == "cudarc"))') ||
    die "cargo metadata does not tell where cudarc is"
  {
    echo '#define NO_DEVICE 100'
    echo 'int cuGetErrorName(int e, const char **s) { (void)e; *s = "CUDA_ERROR_NO_DEVICE"; return 0; }'
    echo 'int cuGetErrorString(int e, const char **s) { (void)e; *s = "no CUDA-capable device is detected"; return 0; }'
    grep -ohE '\bcu[A-Z][A-Za-z0-9_]*' "$header" "$cudarc/src/driver/sys/mod.rs" | sort -u |
      grep -vxE 'cuGetError(Name|String)' | sed 's/.*/int &(void) { return NO_DEVICE; }/'
  } >"$stub/libcuda.c"
  gcc -shared -fPIC -O1 -Wl,-soname,libcuda.so.1 -o "$stub/libcuda.so.1" "$stub/libcuda.c" ||
    die "gcc could not compile $stub/libcuda.c"
  ln -sf libcuda.so.1 "$stub/libcuda.so"
  echo "$key" >"$stub/made-from"
}

# Puts folder $2 in front of the path list named $1, once.
prepend() {
  local -n list=$1
  [[ :${list:-}: == *":$2:"* ]] || list=$2${list:+:$list}
}

if home=$(installed_toolkit); then
  say "using the CUDA toolkit in $home"
else
  home=$(wheel_toolkit)
  export CUDARC_CUDA_VERSION=$cudarc_version
fi
stub_driver "$home"

export CUDA_HOME=$home
# candle compiles its own kernels for one architecture only. PTX of this one runs on everything later.
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-80}
export PATH LIBRARY_PATH
prepend PATH "$home/bin"
prepend LIBRARY_PATH "$root/stub"
prepend LIBRARY_PATH "$home/lib64"

case ${1-} in
  '')
    for name in CUDA_HOME CUDA_COMPUTE_CAP CUDARC_CUDA_VERSION PATH LIBRARY_PATH; do
      [[ -z ${!name+set} ]] || printf 'export %s=%q\n' "$name" "${!name}"
    done
    ;;
  run)
    shift
    [[ $# -gt 0 ]] || die "run what? usage: kernels/toolkit.sh run CMD..."
    export LD_LIBRARY_PATH
    has_driver || prepend LD_LIBRARY_PATH "$root/stub"
    prepend LD_LIBRARY_PATH "$home/lib64"
    exec "$@"
    ;;
  *) die "unknown argument '$1': expected nothing, or run CMD..." ;;
esac
