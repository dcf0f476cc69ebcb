# Sourced: the environment of the project's .venv. Without these three the wheels start every interpreter twice
# (they exec it anew to set LD_LIBRARY_PATH).
venv="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv"
for libs in "$venv"/lib "$venv"/lib/python3*/site-packages/ros_*.libs; do
  [ -d "$libs" ] && LD_LIBRARY_PATH="$libs${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
done
export LD_LIBRARY_PATH AMENT_PREFIX_PATH="$venv" _ROS_WHEELS_BOOTSTRAP_COMPLETE=1
export ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST  # nothing of a demonstration or a test leaves this machine
export PATH="$venv/lib/edge_resnet:$venv/bin:$PATH"
unset PYTHONPATH PYTHONHOME
