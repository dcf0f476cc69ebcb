"""ros2 launch edge_resnet pipeline.launch.py: camera, preprocess, inference, actuator and thermal monitor.

Without an argument it plays the sample frames through the default model into the simulated actuator.
``--show-args`` lists the arguments; each is a ``LaunchArgument`` of ``edge_resnet.deployment``.
"""

import os

from launch_ros.actions import Node, PushROSNamespace

from edge_resnet.deployment import ARGUMENTS, plan, transport_environment
from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, GroupAction, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration


def start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The nodes, once the arguments have their values."""
    deployment = plan({argument.name: LaunchConfiguration(argument.name).perform(context) for argument in ARGUMENTS})
    nodes = [
        Node(package='edge_resnet', executable=executable, arguments=arguments, output='both', emulate_tty=True,
             respawn=deployment.respawn, respawn_delay=1.0)
        for executable, arguments in deployment.executables.items()
    ]
    variables = [SetEnvironmentVariable(name, value) for name, value in transport_environment(os.environ).items()]
    return [*variables, GroupAction([PushROSNamespace(deployment.namespace), *nodes])]


def generate_launch_description() -> LaunchDescription:
    declared = [DeclareLaunchArgument(argument.name, default_value=argument.default, description=argument.description,
                                      choices=list(argument.choices) or None) for argument in ARGUMENTS]
    return LaunchDescription([*declared, OpaqueFunction(function=start)])
