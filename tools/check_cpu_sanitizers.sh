#!/usr/bin/env bash
# Runs the tests of the operators on a build with AddressSanitizer and UndefinedBehaviorSanitizer:
#   tools/check_cpu_sanitizers.sh [arguments for pytest; default: tests/layers]
# Needs gcc and an environment with torch and the test requirements.  Works on a copy of the tree, in a temporary
# folder; the first finding ends the run with an error.
set -eu -o pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
python=${PYTHON:-python}
compiler=${CXX:-g++}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir "$work/tree"
cp -r "$root"/{setup.py,pyproject.toml,fcos_core,csrc,configs,tests,tools} "$work/tree"
# a library that was built without sanitizers would be taken
rm -f "$work"/tree/fcos_core/_ext*
cd "$work/tree"

# vptr needs type information of torch's classes; -O1 keeps the lines of a report right
flags="-fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=all -fno-omit-frame-pointer -O1 -g1"
export CXX=$compiler CXXFLAGS="$flags" CFLAGS="$flags" LDFLAGS="-fsanitize=address,undefined" FORCE_CUDA=0
export FCOS_CORE_CACHE="$work/cache" PYTHONPATH="$work/tree" PYTHONDONTWRITEBYTECODE=1
# CUDA does not start where the sanitizer has the addresses that it wants
export CUDA_VISIBLE_DEVICES=
"$python" -m fcos_core.build
unset CXXFLAGS CFLAGS LDFLAGS

# Python itself is not built with the sanitizer, so its runtime has to be there first; Python's own leaks at exit are
# not ours
runtime=$("$compiler" -print-file-name=libasan.so):$("$compiler" -print-file-name=libubsan.so)
[ "$#" -gt 0 ] || set -- tests/layers
# what asks for more than 8 GB is told that there is none, as the tests that do so expect
asan=detect_leaks=0:halt_on_error=1:abort_on_error=0:allocator_may_return_null=1:max_allocation_size_mb=8192
LD_PRELOAD="$runtime" ASAN_OPTIONS=$asan \
  UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
  "$python" -m pytest -q -p no:cacheprovider "$@"
