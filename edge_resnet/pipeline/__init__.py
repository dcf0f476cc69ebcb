"""Pure NumPy and OpenCV: preprocessing, model bundles, inference, decision and latency. No rclpy, no hardware."""
