#!/usr/bin/env bash
# The main job: through ros2 launch where ROS 2 is installed and sourced, else through the .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export ROS_AUTOMATIC_DISCOVERY_RANGE="${ROS_AUTOMATIC_DISCOVERY_RANGE:-LOCALHOST}"
if command -v ros2 > /dev/null; then
  colcon --log-base build/log build --build-base build/colcon --install-base build/install --packages-select edge_resnet >&2
  set +u
  source build/install/setup.bash
  exec ros2 launch edge_resnet pipeline.launch.py "$@"
fi
scripts/setup.sh
source scripts/env.sh
exec python -m edge_resnet.tools.demo "$@"
