"""The outside world: camera sources, actuator backends, thermal readers, each with a fake. No rclpy, no pipeline."""
