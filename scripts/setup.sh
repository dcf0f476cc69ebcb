#!/usr/bin/env bash
# Makes .venv: ROS 2 Jazzy's rclpy from wheels, the runtime packages, vision_msgs built here, and this package.
# Runs again in no time; heals what was interrupted. PYTHON=/path/to/python3.11 chooses the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -w . ] || { echo "setup: $(pwd) is not writable, and .venv is made in it" >&2; exit 1; }
case $(pwd) in *[![:ascii:]]*) echo "setup: $(pwd): ROS 2's generators can't build in a path with other than ASCII letters" >&2; exit 1;; esac
exec 9> .setup.lock
command -v flock > /dev/null && flock 9
umask 022

say() { printf '%s\n' "$*" >&2; }
fail() { say "setup: $*"; exit 1; }

# What apt calls it: install it where that is allowed, else say how.
need() {
  say "installing $*"
  local apt=(env DEBIAN_FRONTEND=noninteractive apt-get)
  [ "$(id -u)" = 0 ] || apt=(sudo -n "${apt[@]}")
  if ! { command -v apt-get > /dev/null && "${apt[@]}" -qq update && "${apt[@]}" -qq install -y --no-install-recommends "$@"; } > /dev/null 2>&1; then
    fail "missing system packages. Please run: sudo apt-get install $*"
  fi
}

fits() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2> /dev/null; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.12 python3.11 python3.10}; do
    if fits "$candidate"; then command -v "$candidate"; return; fi
  done
  fail "${PYTHON:-python3} is $(${PYTHON:-python3} -V 2>&1 || true); Python 3.10, 3.11 or 3.12 is needed. Set PYTHON to one"
}

stamp() { # of the files named, and of the interpreter in .venv
  { cat "$@"; .venv/bin/python -VV; pwd; } 2> /dev/null | sha256sum | cut -d' ' -f1
}

fresh() { [ -f ".venv/.$1" ] && [ "$(cat ".venv/.$1")" = "$2" ]; }

# 1. The interpreter.
if ! { [ -x .venv/bin/python ] && fits .venv/bin/python && [ "$(cat .venv/.place 2> /dev/null)" = "$(pwd)" ]; }; then
  python=$(find_python)
  say "making .venv with $("$python" -V)"
  rm -rf .venv
  if ! "$python" -m venv .venv > /dev/null 2>&1; then
    version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    need "$version-venv"
    rm -rf .venv
    "$python" -m venv .venv
  fi
  pwd > .venv/.place
fi
export _ROS_WHEELS_BOOTSTRAP_COMPLETE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
unset PYTHONPATH PYTHONHOME AMENT_PREFIX_PATH

# 2. Packages.
wanted=(requirements/ros.lock requirements/base.lock requirements/build.lock)  # by sha256, scripts/lock.sh makes them from the .txt
for extra in "$@"; do wanted+=("requirements/$extra.lock"); done
for file in "${wanted[@]}"; do
  name=packages-$(basename "$file" .lock)
  now=$(stamp "$file")
  if ! fresh "$name" "$now"; then
    rm -f ".venv/.$name"
    say "installing $file"
    .venv/bin/python -m pip install -q --require-hashes -r "$file" || fail "pip could not install $file"
    echo "$now" > ".venv/.$name"
  fi
done

# 3. vision_msgs, right only if its type hashes are upstream's.
now=$(stamp interfaces/vision_msgs/msg/* interfaces/vision_msgs/CMakeLists.txt requirements/ros.txt scripts/check_interfaces.py)
if ! fresh interfaces "$now"; then
  rm -f .venv/.interfaces
  say "building vision_msgs"
  config=$(.venv/bin/python -c 'import os, sys, sysconfig; print(os.path.exists(sysconfig.get_path("include") + "/Python.h"))')
  missing=()
  command -v g++ > /dev/null || missing+=(g++)
  command -v make > /dev/null || missing+=(make)
  [ "$config" = True ] || missing+=("$(.venv/bin/python -c 'import sys; print("libpython%d.%d-dev" % sys.version_info[:2])')")
  [ ${#missing[@]} = 0 ] || need "${missing[@]}"
  log=.venv/vision_msgs.log
  rm -rf .venv/build-interfaces
  # The wheels' CMake files name the Python and NumPy of the machine that built them.
  read -r python_h numpy_h < <(.venv/bin/python -c 'import numpy, sysconfig; print(sysconfig.get_path("include"), numpy.get_include())')
  sed -i -E "s#/opt/python/[^;\"]*/numpy/[^;\"]*include#$numpy_h#g; s#/opt/python/[^;\"]*/include/python[0-9.]+#$python_h#g" .venv/share/*/cmake/*.cmake
  (
    source scripts/env.sh
    cmake -S interfaces/vision_msgs -B .venv/build-interfaces -DCMAKE_INSTALL_PREFIX="$venv" -DCMAKE_PREFIX_PATH="$venv" \
      -DPython3_EXECUTABLE="$venv/bin/python" -DPython3_FIND_VIRTUALENV=ONLY -DBUILD_TESTING=OFF -DCMAKE_BUILD_TYPE=Release &&
      cmake --build .venv/build-interfaces --parallel 2 && cmake --install .venv/build-interfaces && python scripts/check_interfaces.py
  ) > "$log" 2>&1 || { tail -n 20 "$log" >&2; fail "building vision_msgs failed, the whole output is in $log"; }
  rm -rf .venv/build-interfaces
  echo "$now" > .venv/.interfaces
fi

# 4. A browser for test/browser, where apt gives one; elsewhere those tests are skipped, and say so. Tried once.
if [[ " $* " == *" test "* ]] && ! command -v chromedriver > /dev/null && [ ! -e .venv/.browser ]; then
  touch .venv/.browser
  (need chromium chromium-driver) || say "going on without a browser"
fi

# 5. This package: editable, so the nodes run the files of this checkout.
now=$(stamp setup.py setup.cfg package.xml; ls edge_resnet/nodes edge_resnet/tools 2> /dev/null | sha256sum)
if ! fresh package "$now"; then
  rm -f .venv/.package
  say "installing edge_resnet"
  .venv/bin/python -m pip install -q --no-deps --no-build-isolation -e . || fail "pip could not install edge_resnet"
  echo "$now" > .venv/.package
fi
