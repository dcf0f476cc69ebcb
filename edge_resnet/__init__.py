"""A camera, a classifier and an actuator in real time on a Raspberry Pi, as ROS 2 nodes."""
