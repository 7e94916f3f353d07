#!/usr/bin/env bash
# Make the virtual environment: PyTorch, an OpenMMLab stack, and this package (editable). Nothing is compiled by default.
#
#     bash tools/setup_env.sh
#
# Run it as often as you like: what is done already is not done again. Environment variables:
#   STACK           onedl (default, the maintained forks) or openmmlab (upstream's last releases)
#   VENV            folder of the environment, default .venv beside this script's repository
#   PYTHON          Python 3.10 to 3.13 to make it from, default the first that fits of python3.11, python3.12,
#                   python3.13, python3.10, python3 and python
#   MIN_FREE_GB     free disk space asked for, default 8, and a third of it for temporary files (TMPDIR)
#   MMCV_OPS        torchvision (default): mmcv's operators by torchvision and PyTorch, see pelk_mm/mmcv_ops
#                   compiled: mmcv's own operators, with an older PyTorch; takes a quarter of an hour on 2 cores, and
#                   CXX             C++17 compiler, default c++
#                   MAX_JOBS        compile jobs, default one per core and 2 GB of memory
#                   XDG_CACHE_HOME  wheels built here are kept in its pelk_mm/wheels, default ~/.cache
#                   CUDA_VISIBLE_DEVICES=  (empty) builds for the CPU only, also where there is a GPU
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
STACK=${STACK:-onedl}
MMCV_OPS=${MMCV_OPS:-torchvision}
VENV=${VENV:-$ROOT/.venv}
[[ $VENV = /* ]] || VENV=$PWD/$VENV
MIN_FREE_GB=${MIN_FREE_GB:-8}
WHEELS=${XDG_CACHE_HOME:-$HOME/.cache}/pelk_mm/wheels
STAMP=$VENV/pelk_mm_setup
LOG=$VENV/setup.log

say() { printf '%s\n' "$*"; }

refuse() {
    say "setup_env: $1" >&2
    shift
    (($# == 0)) || printf '  %s\n' "$@" >&2
    exit 1
}

duration() { printf '%d min %02d s' $(($1 / 60)) $(($1 % 60)); }

# Why Python $1 cannot be used; nothing if it can.
python_problem() {
    MMCV_OPS=$MMCV_OPS "$1" - 2>/dev/null <<'PY' || say "does not run"
import importlib.util
import os
import sys
import sysconfig

version = '%d.%d' % sys.version_info[:2]
if version not in ('3.10', '3.11', '3.12', '3.13'):
    print('is Python ' + version + ', the pins of requirements/ are for 3.10 to 3.13')
elif not all(importlib.util.find_spec(name) for name in ('venv', 'ensurepip')):
    print('cannot make virtual environments (Debian, Ubuntu: install python' + version + '-venv)')
elif os.environ['MMCV_OPS'] == 'compiled' and not os.path.exists(os.path.join(sysconfig.get_path('include'), 'Python.h')):
    print('has no Python.h to compile mmcv with (Debian, Ubuntu: install python' + version + '-dev)')
PY
}

# Why the C++ compiler cannot be used; nothing if it can. CXX may hold arguments, as in "ccache g++".
compiler_problem() {
    local cxx folder
    [[ $MMCV_OPS = compiled ]] || return 0
    read -ra cxx <<<"${CXX:-c++}"
    if ! command -v "${cxx[0]}" >/dev/null; then
        say "C++ compiler: ${cxx[0]} not found; install g++ 9 or later, or set CXX"
        return
    fi
    folder=$(mktemp -d)
    printf '#include <filesystem>\nint main() { return std::filesystem::exists("/") ? 0 : 1; }\n' >"$folder/try.cpp"
    if ! "${cxx[@]}" -std=c++17 "$folder/try.cpp" -o "$folder/try" >/dev/null 2>&1; then
        say "C++ compiler: ${cxx[*]} does not compile and link C++17; install g++ 9 or later, or set CXX"
    fi
    rm -r "$folder"
}

# Why folder $1, which need not exist yet, has less than $2 GB of free disk space; nothing if it has more.
disk_problem() {
    local folder=$1 free
    while [[ ! -d $folder ]]; do folder=$(dirname "$folder"); done
    free=$(df -Pk "$folder" | awk 'NR == 2 { print int($4 / 1024 / 1024) }')
    if ((free < $2)); then
        say "disk: $free GB free at $folder, $2 GB asked for (MIN_FREE_GB changes that)"
    fi
}

# Sets PYTHON, or refuses with everything that is in the way.
check_machine() {
    local problems=() candidates=(python3.11 python3.12 python3.13 python3.10 python3 python) candidate problem found=
    [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        problem=$(python_problem "$candidate")
        if [[ -z $problem ]]; then
            found=$candidate
            break
        fi
        problems+=("Python: $candidate $problem")
    done
    [[ -z $found ]] || problems=()
    ((${#problems[@]} == 0)) || problems+=("Python: set PYTHON to a Python 3.10 to 3.13")
    # pip unpacks downloads where temporary files go.
    for problem in "$(compiler_problem)" "$(disk_problem "$VENV" "$MIN_FREE_GB")" \
        "$(disk_problem "${TMPDIR:-/tmp}" $((MIN_FREE_GB / 3)))"; do
        [[ -z $problem ]] || problems+=("$problem")
    done
    ((${#problems[@]} == 0)) || refuse "this machine will not do:" "${problems[@]}"
    PYTHON=$found
}

# What the environment is made of: changes when a pin, the stack or the place of the sources does.
fingerprint() {
    { say "$STACK $MMCV_OPS $ROOT" && cat "$ROOT"/requirements/*.txt; } | sha256sum | cut -c1-16
}

# The text of the stamp of an environment in state $1.
stamp_text() { printf 'stack=%s\nmmcv_ops=%s\nfingerprint=%s\nstate=%s' "$STACK" "$MMCV_OPS" "$(fingerprint)" "$1"; }

stamp() { say "$(stamp_text "$1")" >"$STAMP"; }

# Refuses unless VENV is absent, or was made by this script for this stack and these operators.
check_venv() {
    [[ -d $VENV && -n $(ls -A "$VENV") ]] || return 0
    local other="Give another place with VENV=..., or remove it: rm -r $VENV"
    [[ -f $STAMP ]] || refuse "$VENV was not made by this script." "$other"
    # Version 0.1.0 always compiled, and did not write down that it did.
    local stack ops
    stack=$(sed -n 's/^stack=//p' "$STAMP")
    ops=$(sed -n 's/^mmcv_ops=//p' "$STAMP")
    [[ $stack = "$STACK" && ${ops:=compiled} = "$MMCV_OPS" ]] ||
        refuse "$VENV holds STACK=$stack MMCV_OPS=$ops, asked for is STACK=$STACK MMCV_OPS=$MMCV_OPS." "$other"
    if [[ -e $VENV/bin/python || -L $VENV/bin/python ]] && ! "$VENV/bin/python" -c '' 2>/dev/null; then
        refuse "$VENV/bin/python does not run; was the folder or its Python moved?" "$other"
    fi
}

is_ready() { [[ -f $STAMP && $(cat "$STAMP") = "$(stamp_text complete)" ]]; }

JOB=
BUILDING=
# What was started ends with the script (a group of its own, for the compilers too), and half a build is not kept.
clean_up() {
    [[ -z $JOB ]] || kill -- "-$JOB" 2>/dev/null || true
    [[ -z $BUILDING ]] || rm -rf "$BUILDING"
}

# step "what" "how long" command...: run it with its output in the log, saying once a minute that it is alive.
step() {
    local what=$1 estimate=$2 start=$SECONDS next=60 status=0 progress
    shift 2
    say "==> $what ($estimate)"
    say "==> $what: $*" >>"$LOG"
    set -m
    "$@" >>"$LOG" 2>&1 </dev/null &
    JOB=$!
    set +m
    while kill -0 "$JOB" 2>/dev/null; do
        sleep 0.5
        if ((SECONDS - start >= next)); then
            progress=$(tail -n 5 "$LOG" | grep -oE '\[[0-9]+/[0-9]+\]' | tail -n 1) || true
            say "    still at it after $(duration $((SECONDS - start)))${progress:+, compiled $progress}"
            ((next += 60))
        fi
    done
    wait "$JOB" || status=$?
    JOB=
    if ((status != 0)); then
        tail -n 25 "$LOG" >&2
        if tail -n 60 "$LOG" | grep -qE 'Connection|Max retries|timed out|Name or service|No matching distribution'; then
            refuse "$what failed: pip could not get a package. Is the package index reachable? Log: $LOG"
        fi
        refuse "$what failed with status $status. Log: $LOG"
    fi
    say "    done in $(duration $((SECONDS - start)))"
}

pip() { "$VENV/bin/python" -m pip --no-input --disable-pip-version-check "$@"; }

# The pins take the place of constraints that pip's configuration may hold. Python compiles what it imports, when it does.
install() {
    PIP_CONSTRAINT=$ROOT/requirements/constraints.txt pip install --progress-bar off --no-compile --no-build-isolation "$@"
}

# Folder of the cache for a wheel: stack, package==version, torch, Python ABI, platform, device of the compiled ops.
wheel_key() { say "$1/${2/==/-}-torch$3-$4-$5-$6"; }

# The last four of wheel_key's arguments for this environment; sees a GPU only together with its CUDA compiler.
wheel_platform() {
    "$VENV/bin/python" - 2>/dev/null <<'PY'
import platform
import sysconfig

import torch
from torch.utils.cpp_extension import CUDA_HOME

device = 'cpu'
if torch.cuda.is_available() and CUDA_HOME:
    archs = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    device = '-'.join([f'cu{torch.version.cuda}', *(f'sm{major}{minor}' for major, minor in sorted(archs))])
libc = ''.join(platform.libc_ver())
print(torch.__version__, sysconfig.get_config_var('SOABI'), f'{platform.machine()}-{libc}', device)
PY
}

# Whether $1 is an intact wheel of mmcv with its compiled ops.
has_ops() {
    "$VENV/bin/python" - "$1" 2>/dev/null <<'PY'
import sys
import zipfile

with zipfile.ZipFile(sys.argv[1]) as wheel:
    sys.exit(wheel.testzip() is not None or not any(name.startswith('mmcv/_ext.') for name in wheel.namelist()))
PY
}

# Build mmcv into the folder $2. pip's own cache of built wheels does not know torch's version, so it is left out.
build_mmcv() {
    mkdir -p "$2"
    MMCV_WITH_OPS=1 pip wheel -v --no-build-isolation --no-deps --no-cache-dir --no-binary "${1%%==*}" \
        --wheel-dir "$2" "$1" && has_ops "$2"/*.whl
}

# Install mmcv without operators: in pip's isolated build it sees no PyTorch, and compiles nothing. mmcv 2.1.0 builds
# with a setuptools that has pkg_resources. pip's cache may hold a wheel with operators that was built for another PyTorch.
install_plain_mmcv() {
    local build=$ROOT/requirements/build.txt
    PIP_CONSTRAINT=$build PIP_BUILD_CONSTRAINT=$build pip install --progress-bar off --no-deps --no-cache-dir --use-pep517 \
        --no-binary "${1%%==*}" "$1"
}

install_compiled_mmcv() {
    local requirement=$1 torch abi platform device key kept jobs memory_gb
    read -r torch abi platform device <<<"$(wheel_platform)"
    [[ -n ${device:-} ]] || refuse "the PyTorch in $VENV does not import. Remove the folder and run this again."
    key=$(wheel_key "$STACK" "$requirement" "$torch" "$abi" "$platform" "$device")
    kept=$WHEELS/$key
    if [[ $device = cpu ]]; then
        if [[ -e /proc/driver/nvidia/version && ${CUDA_VISIBLE_DEVICES-unset} = unset ]]; then
            say "    No CUDA compiler (nvcc) found: mmcv's ops are built for the CPU. Detection then runs on the CPU only."
        fi
        export CUDA_VISIBLE_DEVICES=
    fi
    if ! has_ops "$kept"/*.whl; then
        memory_gb=$(awk '/MemAvailable/ { print int($2 / 1024 / 1024) }' /proc/meminfo 2>/dev/null || say 4)
        jobs=$(nproc 2>/dev/null || say 2)
        ((jobs <= memory_gb / 2)) || jobs=$((memory_gb / 2 > 1 ? memory_gb / 2 : 1))
        export MAX_JOBS=${MAX_JOBS:-$jobs}
        BUILDING=$kept.building-$$
        step "compile $requirement for $device" "about $((28 / MAX_JOBS + 1)) min, $MAX_JOBS at a time; once only" \
            build_mmcv "$requirement" "$BUILDING"
        # Another clone may have finished the same build meanwhile; its wheel is as good.
        if ! has_ops "$kept"/*.whl; then
            rm -rf "$kept"
            mv -T "$BUILDING" "$kept"
        fi
        say "    kept in $kept"
    fi
    step "install $requirement" "seconds" install "$kept"/*.whl
}

# OpenCV's default build needs libGL, which machines without a display often lack; the headless one does not.
check_opencv() {
    "$VENV/bin/python" -c 'import cv2' || install --no-deps --force-reinstall opencv-python-headless
}

check_imports() {
    (cd / && "$VENV/bin/python" - "$STACK") <<'PY'
import sys
import warnings
from importlib.metadata import version

warnings.simplefilter('ignore')
import mmcv
import mmdet
import mmengine
import mmpretrain
import mmseg
import torch
import torchvision
from mmcv.ops import get_compiler_version, nms

import pelk_mm

boxes = torch.tensor([[0, 0, 10, 10], [1, 0, 11, 10], [20, 20, 30, 30]], dtype=torch.float32)
_, kept = nms(boxes, torch.tensor([0.8, 0.9, 0.7]), 0.5)
assert kept.tolist() == [1, 2], f'mmcv.ops.nms kept {kept.tolist()}, expected [1, 2]'
modules = (torch, torchvision, mmcv, mmengine, mmseg, mmdet, mmpretrain, pelk_mm)
versions = ', '.join(f'{module.__name__} {module.__version__}' for module in modules)
print(f'{versions}; compiler of mmcv.ops: {get_compiler_version()}', file=sys.stderr)
PY
}

main() {
    [[ $STACK = onedl || $STACK = openmmlab ]] || refuse "STACK must be onedl or openmmlab, got '$STACK'."
    [[ $MMCV_OPS = torchvision || $MMCV_OPS = compiled ]] ||
        refuse "MMCV_OPS must be torchvision or compiled, got '$MMCV_OPS'."
    [[ $MIN_FREE_GB =~ ^(0|[1-9][0-9]*)$ ]] || refuse "MIN_FREE_GB must be an integer number of GB, got '$MIN_FREE_GB'."
    check_venv
    if is_ready; then
        say "Environment $VENV (STACK=$STACK, MMCV_OPS=$MMCV_OPS) is ready."
        return
    fi
    check_machine
    local estimate="2 to 5 min"
    [[ $MMCV_OPS = torchvision ]] || estimate+=", and once about 15 min on 2 cores to compile mmcv"
    say "Making $VENV with $("$PYTHON" --version), STACK=$STACK, MMCV_OPS=$MMCV_OPS: $estimate."
    mkdir -p "$VENV"
    trap clean_up EXIT
    if command -v flock >/dev/null; then
        exec 9>"$VENV/setup.lock"
        flock -n 9 || { say "Waiting for another run of this script on $VENV ..." && flock 9; }
        ! is_ready || { say "The other run made it." && return; }
    fi
    stamp incomplete
    [[ -x $VENV/bin/pip ]] || step "make the virtual environment" "seconds" "$PYTHON" -m venv "$VENV"
    local requirements=$ROOT/requirements mmcv torch=torch.txt
    mmcv=$(grep -E '^(onedl-)?mmcv==' "$requirements/$STACK.txt")
    [[ $MMCV_OPS = torchvision ]] || torch=torch_compiled_mmcv.txt
    step "install build tools" "seconds" install -r "$requirements/build.txt"
    step "install PyTorch" "1 to 3 min, 2.5 GB to download" install -r "$requirements/$torch"
    if [[ $MMCV_OPS = compiled ]]; then
        install_compiled_mmcv "$mmcv"
    else
        step "install $mmcv" "seconds" install_plain_mmcv "$mmcv"
    fi
    step "install STACK=$STACK" "about 1 min" install -r "$requirements/$STACK.txt" -r "$requirements/dev.txt"
    step "check OpenCV" "seconds" check_opencv
    step "install pelk_mm" "seconds" install --no-deps -e "$ROOT"
    [[ $MMCV_OPS = compiled ]] ||
        step "let mmcv's operators run on torchvision" "seconds" "$VENV/bin/python" -m pelk_mm.mmcv_ops install
    step "check imports and mmcv's operators" "seconds" check_imports
    tail -n 1 "$LOG"
    stamp complete
    say "Ready in $(duration $SECONDS). Use it with: source $VENV/bin/activate"
    command -v chromium chromium-browser google-chrome >/dev/null ||
        say "No browser found: tests of the leaderboard's page are skipped. To run them: apt-get install chromium"
}

if [[ ${BASH_SOURCE[0]} = "$0" ]]; then
    main
fi
