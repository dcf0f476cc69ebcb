"""The only importers of rclpy. A callback converts, calls one object, publishes; what a node knows it has from below."""
