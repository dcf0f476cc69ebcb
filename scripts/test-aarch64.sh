#!/usr/bin/env bash
# The project's own code on the Raspberry Pi's processor, emulated: qemu-user's Cortex-A72 runs Debian's arm64 Python with the wheels
# that a Pi installs; the samples are classified and a model is calibrated there and here, and the results compared. It proves
# results, not speed. FULL=1: every bundle on every sample; --short: the smallest bundle on three.
# Nothing is installed, no root needed, nothing written outside of AARCH64_CACHE (build/aarch64, 500 MB; 120 MB are fetched once).
# Exit code 0: alike, 1: not, with a line naming sample, model, runtime and both scores; 77: it can't be tried here, and why.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
umask 022

QEMU_SUITE=trixie  # qemu-user 10: bookworm's 7.2 crashes in LiteRT
ROOT_SUITE=bookworm  # what Raspberry Pi OS is made of, with Python 3.11
ROOT_PACKAGES=(python3.11 libstdc++6)
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
FETCH_TIMEOUT_S=300

say() { printf 'test-aarch64: %s\n' "$*" >&2; }
cannot() { say "skipped: $*"; exit 77; }
fail() { say "$*"; exit 1; }

[ "$(uname -m)" = x86_64 ] || cannot "this machine is $(uname -m), there must be an x86_64 one to compare with"
for tool in apt-get dpkg-deb timeout flock; do command -v "$tool" > /dev/null || cannot "there is no $tool here"; done
[ -x .venv/bin/python ] || cannot 'there is no .venv, make setup makes it'
unset LD_LIBRARY_PATH PYTHONPATH PYTHONHOME AMENT_PREFIX_PATH  # apt and pip need none of the .venv's libraries
export _ROS_WHEELS_BOOTSTRAP_COMPLETE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

# What a Pi's pip installs: the project's own pins, without their markers, which are about this machine.
mapfile -t pins < <(sed -nE 's/^((numpy|opencv-python-headless|ai-edge-litert|tflite-runtime|PyYAML|litert-quantizer)==[^; ]+).*/\1/p' \
  requirements/{base,tools}.txt)
mkdir -p "${AARCH64_CACHE:-build/aarch64}"
cache=$(cd "${AARCH64_CACHE:-build/aarch64}" && pwd)
key=$(printf '%s\n' "$cache" "${pins[@]}" "$QEMU_SUITE" "$ROOT_SUITE" "${ROOT_PACKAGES[@]}" | sha256sum | cut -c1-12)
here=$cache/$key root=$cache/$key/root python=$cache/$key/root/usr/bin/python

mirror() { # the first one that this machine's apt takes Debian from
  local uris
  uris=$(apt-get update --print-uris 2> /dev/null |
    sed -nE "s#^'(.*)/dists/(bullseye|bookworm|trixie|forky|sid|oldstable|stable|testing|unstable)/InRelease'.*#\1#p") || true
  printf '%s\n' "${DEBIAN_MIRROR:-${uris%%$'\n'*}}"
}

# fetch FOLDER SUITE ARCHITECTURE COMMAND...: apt-get COMMAND with lists, cache and state of its own, the .debs go to FOLDER/debs
fetch() {
  local folder=$1 suite=$2 architecture=$3 uri; shift 3
  [ -f "$KEYRING" ] || cannot "$KEYRING is missing (package debian-archive-keyring)"
  uri=$(mirror)
  [ -n "$uri" ] || cannot "this machine's apt knows no Debian mirror; DEBIAN_MIRROR=URI names one"
  mkdir -p "$folder"/{debs/partial,state/lists/partial,cache,parts}
  : > "$folder/state/status"
  echo "deb [signed-by=$KEYRING target=Packages] $uri $suite main" > "$folder/sources.list"
  # -c is read last, and only a file can clear the hooks that a distribution runs after an update.
  cat > "$folder/apt.conf" << CONF
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Post-Invoke;
APT { Architecture "$architecture"; Sandbox::User ""; Install-Recommends "false"; };
#clear APT::Architectures;
APT::Architectures { "$architecture"; };
Dir { State "$folder/state"; State::status "$folder/state/status"; Cache "$folder/cache"; Cache::archives "$folder/debs"; };
Dir::Etc { sourcelist "$folder/sources.list"; sourceparts "$folder/parts"; preferences "none"; preferencesparts "$folder/parts"; };
Acquire { Languages "none"; Retries "1"; http::Timeout "20"; https::Timeout "20"; };
Debug::NoLocking "true";
CONF
  local apt=(timeout "$FETCH_TIMEOUT_S" apt-get -c="$folder/apt.conf" -qq -y)
  (cd "$folder/debs" && "${apt[@]}" --error-on=any update && "${apt[@]}" "$@") > "$folder/log" 2>&1 ||
    cannot "apt-get could not fetch $suite/$architecture: $(grep -m 1 -E '^(E|W|Err):' "$folder/log" || tail -n 1 "$folder/log")"
}

get_qemu() {
  say "fetching qemu-user of $QEMU_SUITE"
  fetch "$here/part" "$QEMU_SUITE" "$(dpkg --print-architecture)" download qemu-user
  dpkg-deb --fsys-tarfile "$here"/part/debs/qemu-user_*.deb | tar -x -C "$here/part" ./usr/bin/qemu-aarch64
  "$here/part/usr/bin/qemu-aarch64" --version > "$here/part/version" 2>&1 || cannot "qemu-aarch64 does not run here: $(head -n 1 "$here/part/version")"
  mv "$here/part/usr/bin/qemu-aarch64" "$here/qemu-aarch64"
}

get_root() {
  local packages=$here/part/root/usr/lib/python3/dist-packages platforms=(--platform manylinux2014_aarch64) minor deb
  say "fetching ${ROOT_PACKAGES[*]} of $ROOT_SUITE for arm64"
  fetch "$here/part" "$ROOT_SUITE" arm64 install --download-only "${ROOT_PACKAGES[@]}"
  for deb in "$here"/part/debs/*.deb; do dpkg-deb -x "$deb" "$here/part/root"; done
  say "fetching aarch64 wheels: ${pins[*]}"
  for minor in $(seq 17 36); do platforms+=(--platform "manylinux_2_${minor}_aarch64"); done  # bookworm's C library is 2.36
  timeout "$FETCH_TIMEOUT_S" .venv/bin/python -m pip install -q --target "$packages" --no-compile --only-binary=:all: --python-version 3.11 \
    --implementation cp "${platforms[@]}" --retries 1 --timeout 20 "${pins[@]}" > "$here/part/log" 2>&1 || {
      # Where the index does answer, a pin without a wheel is a fault that a Pi's owner would meet.
      ! grep -E 'from versions: [0-9]|ResolutionImpossible' "$here/part/log" >&2 || fail 'a Pi could not install these pins'
      cannot "pip could not fetch the aarch64 wheels: $(grep -E '^ERROR' "$here/part/log" | tail -n 1 || tail -n 1 "$here/part/log")"
    }
  # Started by this name, Python has it as sys.executable: what it starts is emulated too.
  cat > "$here/part/root/usr/bin/python" << WRAPPER
#!/bin/sh
exec '$here/qemu-aarch64' -cpu cortex-a72 -L '$root' -0 '$python' '$root/usr/bin/python3.11' "\$@"
WRAPPER
  chmod +x "$here/part/root/usr/bin/python"
  mv "$here/part/root" "$root"
}

exec 9> "$cache/.lock"
flock 9
trap 'rm -rf "$here/part"' EXIT
mkdir -p "$here"
for part in qemu-aarch64:get_qemu root:get_root; do
  [ -e "$here/${part%:*}" ] || { rm -rf "$here/part"; ${part#*:}; rm -rf "$here/part"; }
done
trap - EXIT
exec 9>&-

source scripts/env.sh
exec python test/aarch64/compare.py "$python" ${FULL:+--full} "$@"
